# SPDX-License-Identifier: Apache-2.0
"""Hinton's distillation: gradients as in the paper, a student that gains, a digit that it never saw."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.loops.losses import soft_target_loss
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def gathered(batches: object) -> tuple[Tensor, Tensor]:
    """All inputs and all targets of some batches."""
    pairs = list(batches)  # type: ignore[call-overload]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def student(seed: int) -> nn.Module:
    """A small network of another architecture than the teacher."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def context(teacher: nn.Module, task: Task, seed: int = 0) -> Context:
    return Context(task, teacher, torch.device("cpu"), seed, {}, None)


def with_train(task: Task, x: Tensor, y: Tensor, size: int) -> Task:
    return dataclasses.replace(task, train=DataLoader(TensorDataset(x, y), size, shuffle=True))


def slope(z: Tensor, t: Tensor, temperature: float) -> Tensor:
    """The gradient of the loss by the student's logits."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(soft_target_loss(z, t, temperature), z)[0]


def test_the_gradient_keeps_its_size_as_the_temperature_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(64, 10, generator=generator) for _ in range(2))
    sizes = [float(slope(z, t, T).norm()) for T in (2.0, 4.0, 8.0, 16.0, 32.0)]
    ratios = [b / a for a, b in zip(sizes, sizes[1:], strict=False)]  # noqa: RUF007
    assert ratios == pytest.approx([1, 1, 1, 1], abs=0.2)
    assert sizes[-1] == pytest.approx(sizes[-2], rel=0.03)


def test_at_high_temperature_logits_are_matched() -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, 10, generator=generator) for _ in range(2))
    z, t = (v - v.mean(1, keepdim=True) for v in (z, t))
    torch.testing.assert_close(slope(z, t, 2e3) * 6, (z - t) / 10, rtol=1e-2, atol=1e-3)


def test_no_share_of_the_teacher_is_plain_training(digits: tuple[nn.Module, Task]) -> None:
    teacher, task = digits
    before = copy_state(teacher)
    settings = {"epochs": 1, "rate": 0.05}
    torch.manual_seed(0)
    ours = Distill(alpha=0.0, **settings).apply(student(0), context(teacher, task))  # type: ignore[arg-type]
    assert all(torch.equal(t, before[n]) for n, t in copy_state(teacher).items())
    other = Distill(alpha=0.0, temperature=9.0, **settings)  # type: ignore[arg-type]
    theirs = other.apply(student(0), context(student(5), task))
    left, right = copy_state(ours), copy_state(theirs)
    assert all(torch.equal(left[n], right[n]) for n in left), (
        "neither teacher nor temperature count"
    )
    plain = Finetune(**settings).apply(student(0), context(teacher, task))  # type: ignore[arg-type]
    scores = [evaluate(m, task).value for m in (ours, plain)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)  # the same but for the order of the data


def test_the_teacher_is_bit_equal_afterwards(digits: tuple[nn.Module, Task]) -> None:
    teacher, task = digits
    before = copy_state(teacher)
    Distill(epochs=1, rate=0.05).apply(student(0), context(teacher, task))
    assert all(torch.equal(t, before[n]) for n, t in copy_state(teacher).items())
    assert not teacher.training


def test_a_student_with_little_data_gains(digits: tuple[nn.Module, Task]) -> None:
    teacher, task = digits
    torch.manual_seed(0)
    x, y = gathered(task.train)
    little = with_train(task, x[:150], y[:150], 30)

    def mean_accuracy(**fields: float) -> float:
        step = Distill(epochs=30, rate=0.05, **fields)  # type: ignore[arg-type]
        found = [step.apply(student(s), context(teacher, little, s)) for s in range(3)]
        return sum(evaluate(m, task).value for m in found) / 3

    assert mean_accuracy(alpha=0.9, temperature=4) >= mean_accuracy(alpha=0.0) + 0.003


def test_a_digit_that_the_student_never_saw(digits: tuple[nn.Module, Task]) -> None:
    """Soft targets of other digits tell what a 3 looks like; only its bias has to be set anew."""
    teacher, task = digits
    torch.manual_seed(0)
    x, y = gathered(task.train)
    assert int((y == 3).sum()) > 50
    no_three = with_train(task, x[y != 3], y[y != 3], 64)
    step = Distill(epochs=20, rate=0.05, alpha=1.0, temperature=4)
    model = step.apply(student(0), context(teacher, no_three))
    x, y = gathered(task.test)
    with torch.no_grad():
        logits = model(x)
    # one image in ten is called a 3 when the third logit is raised by as much as the (0.9 N)-th margin
    margin = logits[:, [c for c in range(10) if c != 3]].amax(1) - logits[:, 3]
    logits[:, 3] += margin.kthvalue(len(x) // 10).values + 1e-6
    answers = logits.argmax(1)
    assert float((answers[y == 3] == 3).float().mean()) >= 0.5
    assert float((answers == y).float().mean()) >= 0.8


def test_the_recipe_recovers_a_pruned_network(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model)
    for step in load_recipe("kd").steps:
        model = step.apply(model, context(teacher, task))
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.01


def test_it_works_without_labels(digits: tuple[nn.Module, Task]) -> None:
    teacher, task = digits
    x, _ = gathered(task.train)
    held, _ = gathered(task.validation)
    fields = {
        "train": DataLoader(TensorDataset(x), 64, shuffle=True),
        "validation": DataLoader(TensorDataset(held), 200),
        "test": None,
        "calibration": None,
    }
    blind = dataclasses.replace(task, labelled=False, **fields)  # type: ignore[arg-type]
    model = Distill(epochs=8, rate=0.05).apply(student(0), context(teacher, blind))
    assert evaluate(model, task).value >= 0.85
