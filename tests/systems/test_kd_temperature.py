# SPDX-License-Identifier: Apache-2.0
"""The temperature: what it does to soft targets, and how it is lowered while training."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.distill import Distill
from rarefy.loops.losses import soft_target_loss
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(teacher: nn.Module, task: Task) -> Context:
    return Context(task, teacher, torch.device("cpu"), 0, {}, None)


def test_the_entropy_of_soft_targets_grows_with_the_temperature(
    digits: tuple[nn.Module, Task],
) -> None:
    teacher, task = digits
    x, _ = next(iter(task.batches("test")))
    with torch.no_grad():
        logits = teacher(x)
    entropies = []
    for temperature in (0.5, 1.0, 2.0, 4.0, 8.0, 100.0):
        p = (logits / temperature).softmax(1)
        entropies.append(-(p * p.clamp(min=1e-30).log()).sum(1))
    for cooler, warmer in zip(entropies, entropies[1:], strict=False):  # noqa: RUF007
        assert bool((warmer >= cooler - 1e-6).all())
    torch.testing.assert_close(
        entropies[-1], torch.full((len(x),), torch.tensor(10.0).log()), rtol=0, atol=0.05
    )


def test_at_temperature_one_it_is_cross_entropy_with_soft_labels(
    digits: tuple[nn.Module, Task],
) -> None:
    teacher, task = digits
    x, _ = next(iter(task.batches("test")))
    with torch.no_grad():
        t = teacher(x)
    z = torch.randn_like(t).requires_grad_()
    ours = torch.autograd.grad(soft_target_loss(z, t, 1.0), z)[0]
    theirs = torch.autograd.grad(F.cross_entropy(z, t.softmax(1)), z)[0]
    torch.testing.assert_close(ours, theirs)


def test_the_schedule_is_logged_and_followed(
    digits: tuple[nn.Module, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    import rarefy.distill.distill as page

    model, task = digits
    teacher, real, used = copy.deepcopy(model), page.imitation_loss, []

    def watched(student: Tensor, answers: Tensor, temperature: float) -> Tensor:
        used.append(temperature)
        return real(student, answers, temperature)

    monkeypatch.setattr(page, "imitation_loss", watched)
    ctx = context(teacher, task)
    step = Distill(epochs=3, rate=0.01, temperature=4.0, temperature_schedule="annealed")
    step.apply(model, ctx)
    assert [row["temperature"] for row in ctx.record["training"]] == pytest.approx([4.0, 3.0, 2.0])
    steps = len(used)
    assert used == pytest.approx([4 - 3 * n / steps for n in range(steps)])
    assert 1 < used[-1] < 1.1
    steady = context(teacher, task)
    Distill(epochs=1, rate=0.01, temperature=5.0).apply(copy.deepcopy(teacher), steady)
    assert [row["temperature"] for row in steady.record["training"]] == [5.0]


def test_the_recipe_recovers_a_pruned_network(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model)
    for step in load_recipe("kd-temperature").steps:
        model = step.apply(model, context(teacher, task))
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.01
