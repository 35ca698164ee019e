# SPDX-License-Identifier: Apache-2.0
"""Variational information and contrast in one recipe; their bounds stand in tests/distill."""

import contextlib
import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn

from rarefy.distill.distill import Distill
from rarefy.distill.taught import Told
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def test_the_recipe_recovers_and_leaves_nothing_behind(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune, distill = load_recipe("kd-mi").steps
    ctx = Context(task, teacher, torch.device("cpu"), 0)
    small = prune.apply(model, ctx)
    shapes = {n: t.shape for n, t in copy_state(small).items()}
    pruned = evaluate(small, task).value
    small = distill.apply(small, ctx)
    assert {n: t.shape for n, t in copy_state(small).items()} == shapes
    losses = [row["loss"] for row in ctx.record["training"]]
    assert losses[-1] < losses[0]
    assert evaluate(small, task).value > pruned
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.03


def test_resuming_brings_adapters_back(digits: tuple[nn.Module, Task], tmp_path: Path) -> None:
    """Lessons have weights of their own; a training that is cut short goes on with them."""
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    step = Distill(loss=("soft-targets", "information", "contrastive"), epochs=2)
    whole = step.apply(copy.deepcopy(model), Context(task, teacher, torch.device("cpu"), 0))

    class Stop(Exception):
        pass

    def stopping(batches: object, after: int) -> object:
        class Batches:
            count = 0

            def __len__(self) -> int:
                return len(batches)  # type: ignore[arg-type]

            def __iter__(self) -> object:
                for batch in batches:  # type: ignore[attr-defined]
                    Batches.count += 1
                    if Batches.count > after:
                        raise Stop
                    yield batch

        return Batches()

    cut = dataclasses.replace(task, train=stopping(task.train, 30))  # type: ignore[arg-type]
    ctx = Context(cut, teacher, torch.device("cpu"), 0, {}, tmp_path)
    with contextlib.suppress(Stop):
        step.apply(copy.deepcopy(model), ctx)
    assert list(tmp_path.rglob("training.safetensors"))
    again = Context(task, teacher, torch.device("cpu"), 0, {}, tmp_path)
    resumed = step.apply(copy.deepcopy(model), again)
    other = copy_state(resumed)
    assert all(torch.equal(t, other[n]) for n, t in copy_state(whole).items())
    assert len(again.record["training"]) == 2


def test_the_loss_reaches_student_and_lessons(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    step = Distill(loss=("information", "contrastive"))
    faculty, taught = step.meet(copy.deepcopy(model), Context(task, model, torch.device("cpu")))
    x, y = next(iter(task.batches("train")))
    _, loss = taught(x, told=Told(*faculty.teach(x), y))
    loss.backward()
    names = {n.partition(".")[0] for n, p in taught.named_parameters() if p.grad is not None}
    assert names == {"student", "lessons"}
    assert torch.equal(taught.eval()(x), model(x))  # in evaluation it is the student
