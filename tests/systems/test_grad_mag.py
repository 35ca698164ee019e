# SPDX-License-Identifier: Apache-2.0
"""Sizes of gradients: the order of batches is all one, means of sizes are no sizes of means."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import PruneWeights
from rarefy.prune.scores import gradient, mean_scores
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def scores(model: nn.Module, task: Task) -> list[Tensor]:
    step = PruneWeights(criterion="gradient")
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    return list(step.scores(model, select(model), ctx))


def test_the_order_of_batches_is_all_one(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    batches = list(task.batches("train"))[:6]
    forward = scores(model, dataclasses.replace(task, train=batches))
    backward = scores(model, dataclasses.replace(task, train=batches[::-1]))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(forward, backward, strict=True))


def test_opposite_slopes_count_on_a_saddle() -> None:
    """L = x y w: half of the batches pull one way, half the other."""
    w = torch.tensor([2.0, 1.0])
    slopes = [torch.tensor([3.0, 0.5]), torch.tensor([-3.0, 0.5])]
    (found,) = mean_scores(gradient, [w], [[g] for g in slopes])
    assert found.tolist() == [3.0, 0.5]
    assert torch.stack(slopes).mean(0).abs().tolist() == [0.0, 0.5]


def test_the_score_is_the_mean_of_the_batches_sizes(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    batches = list(task.batches("train"))[:3]
    total = [torch.zeros_like(x.weight) for x in select(model)]
    for x, y in batches:
        model.zero_grad()
        task.loss(model(x), y).backward()
        for t, layer in zip(total, select(model), strict=True):
            t += layer.stored.grad.abs() / 3  # type: ignore[union-attr]
    found = scores(model, dataclasses.replace(task, train=batches))
    assert all(
        torch.allclose(a.float(), b, rtol=1e-4, atol=1e-8)
        for a, b in zip(found, total, strict=True)
    )


def test_at_a_minimum_it_says_less_than_magnitude(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits

    def accuracy(criterion: str) -> float:
        step = PruneWeights(criterion=criterion, sparsity=0.8, allocation="local")  # type: ignore[arg-type]
        ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
        return evaluate(step.apply(copy.deepcopy(model), ctx), task).value

    assert accuracy("gradient") < accuracy("magnitude")


def test_the_recipe_keeps_accuracy(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in load_recipe("grad-mag").steps:
        model = step.apply(model, ctx)
    zeros = sum(int((x.weight == 0).sum()) for x in select(model))
    assert zeros == sum(round(0.5 * x.weight.numel()) for x in select(model))
    assert evaluate(model, task).value >= before - 0.02
