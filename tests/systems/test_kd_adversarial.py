# SPDX-License-Identifier: Apache-2.0
"""A discriminator beside soft targets: without weight it changes nothing, and it stays in the training."""

import copy

import torch
from torch import nn

from rarefy.distill.distill import Distill
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(teacher: nn.Module, task: Task) -> Context:
    return Context(task, teacher, torch.device("cpu"), 0)


def test_without_weight_it_is_plain_distillation(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    plain = Distill(epochs=1).apply(copy.deepcopy(model), context(teacher, task))
    step = Distill(epochs=1, loss={"soft-targets": 1.0, "adversarial": 1e-30})
    other = copy_state(step.apply(copy.deepcopy(model), context(teacher, task)))
    for name, tensor in copy_state(plain).items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def test_the_recipe_keeps_the_discriminator_out(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune, distill = load_recipe("kd-adversarial").steps
    small = prune.apply(model, context(teacher, task))
    names = set(copy_state(small))
    ctx = context(teacher, task)
    small = distill.apply(small, ctx)
    assert set(copy_state(small)) == names
    assert ctx.record["training"][-1]["loss"] > 0
    assert evaluate(small, task).value >= evaluate(teacher, task).value - 0.02
