# SPDX-License-Identifier: Apache-2.0
"""Knowledge condensation: the schedule, all examples as plain distillation, what the worthy ones teach."""

import copy
import dataclasses
from statistics import mean

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rarefy.distill.distill as page
from rarefy.distill.distill import Distill, worth
from rarefy.distill.shrinking import Shrinking
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def context(teacher: nn.Module, task: Task, seed: int = 0) -> Context:
    return Context(task, teacher, torch.device("cpu"), seed)


def test_worth_is_what_is_still_to_learn() -> None:
    target = 3 * torch.randn(4, 6)
    assert worth(target, target).tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert bool((worth(target.flip(1), target) > 0).all())
    assert worth(torch.zeros(2, 1), torch.tensor([[2.0], [0.0]])).tolist() == [4, 0]


def test_all_examples_are_plain_distillation_bit_for_bit(
    digits: tuple[nn.Module, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    plain = Distill(epochs=2).apply(copy.deepcopy(model), context(teacher, task))
    real = page.teach
    monkeypatch.setattr(
        page,
        "teach",
        lambda taught, ctx, settings, plan, batches: real(
            taught, ctx, settings, dataclasses.replace(plan, worth=worth),
            Shrinking(batches, 1.0, 2),
        ),
    )  # fmt: skip
    whole = Distill(epochs=2).apply(copy.deepcopy(model), context(teacher, task))
    other = copy_state(whole)
    assert all(torch.equal(t, other[n]) for n, t in copy_state(plain).items())


def test_steps_fall_as_planned(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    ctx = context(teacher, task)
    for step in load_recipe("kd-condense").steps:
        model = step.apply(model, ctx)
    rows = ctx.record["training"]
    total = len(task.train.dataset)  # type: ignore[union-attr]
    assert [row["examples"] for row in rows] == [
        round(total * (1 - 0.3 * epoch / 4)) for epoch in range(5)
    ]
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.02


def test_worthy_examples_teach_as_much_as_random_ones(
    digits: tuple[nn.Module, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, task = digits
    torch.manual_seed(7)
    x, y = (torch.cat(parts) for parts in zip(*task.batches("train"), strict=True))
    fixed = DataLoader(TensorDataset(x[:1000], y[:1000]), 40, shuffle=True)
    few = dataclasses.replace(task, train=fixed, validation=None)
    step = Distill(epochs=8, rate=0.05, subset=0.1, alpha=1.0)

    def student(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return DigitsNet()

    def accuracy() -> float:
        found = [step.apply(student(s), context(teacher, few, s)) for s in range(3)]
        return mean(evaluate(m, task).value for m in found)

    chosen = accuracy()
    draw = torch.Generator().manual_seed(0)

    def random(answers: Tensor, target: Tensor, temperature: float) -> Tensor:
        return torch.rand(len(answers), generator=draw)

    monkeypatch.setattr(page, "worth", random)
    assert chosen >= accuracy()
