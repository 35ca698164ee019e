# SPDX-License-Identifier: Apache-2.0
"""FitNets: hints first, then answers; the regressor never leaves the training."""

import copy

import pytest
import torch
from torch import nn

from rarefy.distill.distill import Distill
from rarefy.distill.taught import Told
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(teacher: nn.Module, task: Task, seed: int = 0) -> Context:
    return Context(task, teacher, torch.device("cpu"), seed)


def test_equal_networks_cost_nothing(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    faculty, taught = Distill(loss="hints").meet(model, context(copy.deepcopy(model), task))
    x, _ = next(iter(task.batches("test")))
    with torch.no_grad():
        _, loss = taught(x, told=Told(*faculty.teach(x)))
    assert float(loss) == 0
    assert not list(taught.lessons.parameters())  # nothing to adapt


def test_stages_come_in_order_and_leave_only_the_student(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune, hints, answers = load_recipe("kd-feature").steps
    small = prune.apply(model, context(teacher, task))
    shapes = {n: p.shape for n, p in small.named_parameters()}
    before, pruned = copy_state(small), evaluate(small, task).value
    first = context(teacher, task, 1)
    small = hints.apply(small, first)
    # the first stage reaches the hinted layers alone: what comes behind them is bit for bit the same
    assert first.record["pairs"] == {"hints": [[["conv2", "conv2"], ["pool", "pool"]]]}
    after = copy_state(small)
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    assert {"conv1.weight", "conv2.weight"} <= moved <= {n for n in after if "conv" in n}
    small = answers.apply(small, context(teacher, task, 2))
    assert {n: p.shape for n, p in small.named_parameters()} == shapes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.03
    assert evaluate(small, task).value > pruned


def test_layers_of_other_sizes_are_interpolated(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    step = Distill(loss="hints", alpha=1.0, pairs={"conv1": "pool"}, epochs=2, rate=0.02)
    ctx = context(teacher, task)
    step.apply(model, ctx)
    losses = [row["loss"] for row in ctx.record["training"]]
    assert losses[1] < losses[0]
    _, taught = step.meet(model, ctx)
    shapes = [tuple(p.shape) for p in taught.lessons.parameters()]
    assert shapes == [(16, 32, 1, 1)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"conv3": "conv2"}, "the teacher has no module 'conv3'; did you mean 'conv2'"),
        ({"conv2": "covn2"}, "the student has no module 'covn2'; did you mean 'conv2'"),
        ({"conv2": "fc1"}, r"shape \(\d+, 64\) can't be compared .* \(\d+, 32, 8, 8\)"),
    ],
)
def test_wrong_names(pairs: dict[str, str], message: str, digits: tuple[nn.Module, Task]) -> None:
    from rarefy.errors import ModelError

    model, task = digits
    with pytest.raises(ModelError, match=message) as caught:
        Distill(loss="hints", pairs=pairs).apply(model, context(copy.deepcopy(model), task))
    assert "\n" not in str(caught.value)
