# SPDX-License-Identifier: Apache-2.0
"""Attention transfer between networks of different widths; what it does not look at stands in test_maps."""

import copy

import torch
from torch import nn

from rarefy.loops.features import features
from rarefy.loops.losses import attention_loss
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def gap(student: nn.Module, teacher: nn.Module, task: Task) -> float:
    x, _ = next(iter(task.batches("test")))
    with torch.no_grad(), features(student, ["conv2"]) as mine, features(teacher, ["conv2"]) as its:
        student(x), teacher(x)
    return float(attention_loss(mine["conv2"], its["conv2"]))


def test_a_narrow_student_comes_to_look_where_its_teacher_looks(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune, distill = load_recipe("kd-attention").steps
    ctx = Context(task, teacher, torch.device("cpu"))
    small = prune.apply(model, ctx)
    assert small.conv2.weight.shape[0] < teacher.conv2.weight.shape[0]  # type: ignore[union-attr, index, operator]
    before, pruned = gap(small, teacher, task), evaluate(small, task).value
    small = distill.apply(small, ctx)
    assert gap(small, teacher, task) < 0.7 * before
    assert evaluate(small, task).value > pruned
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.03
