# SPDX-License-Identifier: Apache-2.0
"""Row kd-temperature: softer with rising temperature, cross-entropy at one, annealed to one."""

import copy

import pytest
import torch
from torch.nn import functional as F

from rarefy.distill.distill import Distill, annealed
from rarefy.loops.losses import soft_target_loss
from rarefy.step import Context


def test_entropy_of_the_targets_grows_with_temperature():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    entropies = []
    for temperature in (0.5, 1.0, 2.0, 4.0, 16.0):
        p = F.softmax(logits / temperature, 1)
        entropies.append(float(-(p * p.log()).sum(1).mean()))
    assert entropies == sorted(entropies)


def test_at_one_the_gradient_is_that_of_cross_entropy_with_soft_labels():
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)
    (mine,) = torch.autograd.grad(soft_target_loss(student, teacher, 1.0), student)
    (theirs,) = torch.autograd.grad(F.cross_entropy(student, F.softmax(teacher, 1)), student)
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_annealing_ends_at_one():
    values = [annealed(8.0, i / 10) for i in range(11)]
    assert values[0] == 8.0
    assert values[-1] == 1.0
    assert values == sorted(values, reverse=True)


def test_the_schedule_changes_the_training_and_is_recorded(digits):
    model, task = digits
    outputs = []
    for schedule in ("fixed", "annealed"):
        context = Context(task, model, torch.device("cpu"), 0, {})
        step = Distill(epochs=1, temperature=8.0, temperature_schedule=schedule)
        found = step.apply(copy.deepcopy(model), context)
        assert len(context.record["training"]) == 1
        outputs.append(found.fc2.weight.detach())
    assert not torch.equal(*outputs)
    assert pytest.approx(0, abs=0.2) == float((outputs[0] - outputs[1]).abs().max())
