# SPDX-License-Identifier: Apache-2.0
"""Row kd: the limits of the soft-target loss, and a teacher that nobody touches."""

import copy

import pytest
import torch
from torch.nn import functional as F

from rarefy.distill.distill import Distill
from rarefy.loops.losses import soft_target_loss
from rarefy.step import Context


def gradient(temperature):
    torch.manual_seed(0)
    student = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 10, dtype=torch.float64)
    soft_target_loss(student, teacher, temperature).backward()
    return student.grad, student.detach(), teacher


def test_size_of_the_gradient_hardly_depends_on_temperature():
    norms = [float(gradient(t)[0].norm()) for t in (5.0, 20.0, 80.0)]
    assert max(norms) / min(norms) < 1.3


def test_at_high_temperature_logits_are_matched():
    found, student, teacher = gradient(1000.0)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert torch.allclose(found, centred / (10 * 6), rtol=2e-2, atol=1e-5)


def test_loss_is_zero_for_equal_answers_and_cross_entropy_for_hard_ones():
    logits = torch.randn(4, 7)
    assert float(soft_target_loss(logits, logits, 3.0)) == pytest.approx(0, abs=1e-6)
    hard = F.one_hot(torch.tensor([1, 2, 3, 0]), 7).float() * 200
    target = F.cross_entropy(logits, torch.tensor([1, 2, 3, 0]))
    assert float(soft_target_loss(logits, hard, 1.0)) == pytest.approx(float(target), rel=1e-4)


def test_teacher_stays_and_no_labels_are_needed(digits):
    import dataclasses

    model, task = digits
    teacher = copy.deepcopy(model)
    kept = copy.deepcopy(teacher.state_dict())
    blind = dataclasses.replace(task, labelled=False)
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.fc1.weight.mul_(0.2)
    context = Context(blind, teacher, torch.device("cpu"), 0, {})
    x = torch.cat([x for x, _ in task.batches("test")])
    before = soft_target_loss(student.eval()(x), teacher.eval()(x))
    found = Distill(epochs=1, rate=0.02).apply(student, context)
    assert float(soft_target_loss(found(x), teacher(x))) < float(before)
    assert all(torch.equal(v, kept[k]) for k, v in teacher.state_dict().items())
