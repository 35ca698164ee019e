# SPDX-License-Identifier: Apache-2.0
"""Complementary relations: chance level, the least loss for an equal student, estimators left behind."""

import copy
import math

import torch
from torch import nn

from rarefy.distill.distill import Distill
from rarefy.distill.taught import Told
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def first_loss(student: nn.Module, teacher: nn.Module, task: Task) -> float:
    step = Distill(loss={"complementary": 1.0})
    faculty, taught = step.meet(student, Context(task, teacher, torch.device("cpu"), 0))
    x, _ = next(iter(task.batches("test")))
    with torch.no_grad():
        _, loss = taught(x[:64], told=Told(*faculty.teach(x[:64])))
    return float(loss)


def test_an_equal_student_has_the_least_loss(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    equal = first_loss(copy.deepcopy(model), teacher, task)
    torch.manual_seed(0)
    fresh = first_loss(DigitsNet(), teacher, task)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * p.std() * torch.randn_like(p))
    assert equal < first_loss(model, teacher, task)
    assert equal < fresh
    assert abs(fresh - math.log(64)) < 1.5  # about a guess among 64


def test_the_recipe_leaves_no_estimator(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune, distill = load_recipe("crcd").steps
    ctx = Context(task, teacher, torch.device("cpu"), 0)
    small = prune.apply(model, ctx)
    names, pruned = set(copy_state(small)), evaluate(small, task).value
    small = distill.apply(small, ctx)
    assert set(copy_state(small)) == names
    assert evaluate(small, task).value > pruned
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.03
