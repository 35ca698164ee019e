# SPDX-License-Identifier: Apache-2.0
"""Relations are taught without labels, between embeddings of different sizes."""

import copy
import dataclasses

import torch
from torch import nn

from rarefy.distill.relations import relation_loss
from rarefy.loops.features import features
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def gap(student: nn.Module, teacher: nn.Module, x: torch.Tensor) -> float:
    with (
        torch.no_grad(),
        features(student, ["fc2:input"]) as mine,
        features(teacher, ["fc2:input"]) as theirs,
    ):
        student(x), teacher(x)
    return float(relation_loss(mine["fc2:input"], theirs["fc2:input"]))


def test_relations_come_nearer_without_labels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    inputs = [x for x, _ in task.batches("train")]
    blind = dataclasses.replace(task, train=inputs, validation=None, test=None, labelled=False)
    prune, distill = load_recipe("kd-relation").steps
    ctx = Context(blind, teacher, torch.device("cpu"))
    small = prune.apply(model, ctx)
    x, _ = next(iter(task.batches("test")))
    before = gap(small, teacher, x[:60])
    assert small.fc2.weight.shape[1] < teacher.fc2.weight.shape[1]  # type: ignore[union-attr, index, operator]
    small = distill.apply(small, ctx)
    assert ctx.record["pairs"]["angles"] == [[["fc2:input", "fc2:input"]]]
    assert gap(small, teacher, x[:60]) < 0.6 * before
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.03
