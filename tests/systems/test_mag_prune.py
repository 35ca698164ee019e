# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning: exact counts, zeros that stay, accuracy at 90 % on the embedded digits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import PruneWeights
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {}, None)


def zeros(model: nn.Module) -> list[int]:
    return [int((layer.weight == 0).sum()) for layer in select(model)]


def sizes(model: nn.Module) -> list[int]:
    return [layer.weight.numel() for layer in select(model)]


@pytest.mark.parametrize("sparsity", [0.333, 0.9, 0.987])
def test_zeros_are_counted_exactly(digits: tuple[nn.Module, Task], sparsity: float) -> None:
    model, task = digits
    by_layer = PruneWeights(sparsity=sparsity, allocation="local")
    together = PruneWeights(sparsity=sparsity, allocation="global")
    locally = by_layer.apply(copy.deepcopy(model), context(model, task))
    globally = together.apply(copy.deepcopy(model), context(model, task))
    assert zeros(locally) == [round(sparsity * n) for n in sizes(model)]
    assert sum(zeros(globally)) == round(sparsity * sum(sizes(model)))
    assert zeros(locally) != zeros(globally)


def test_the_smallest_go(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    weights = {x.name: x.weight.detach().clone() for x in select(model)}
    PruneWeights(sparsity=0.8, allocation="global").apply(model, context(model, task))
    kept = torch.cat([weights[x.name][x.weight != 0].abs() for x in select(model)])
    gone = torch.cat([weights[x.name][x.weight == 0].abs() for x in select(model)])
    assert float(gone.max()) <= float(kept.min())
    assert all(torch.equal(x.weight, weights[x.name] * (x.weight != 0)) for x in select(model))


def test_ties_do_not_depend_on_chance() -> None:
    def pruned() -> torch.Tensor:
        model = nn.Linear(30, 30)
        nn.init.constant_(model.weight, 0.5)
        task = Task("none", example=torch.zeros(1, 30))
        PruneWeights(sparsity=0.4).apply(model, context(model, task))
        return (model.weight != 0).flatten()

    keep = pruned()
    assert torch.equal(keep, pruned())
    assert keep.tolist() == [True] * 540 + [False] * 360


@pytest.mark.parametrize("optimiser", [
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: torch.optim.Adam(p, 0.01),
    lambda p: torch.optim.AdamW(p, 0.01),
])  # fmt: skip
def test_momentum_wakes_nothing(digits: tuple[nn.Module, Task], optimiser) -> None:  # type: ignore[no-untyped-def]
    model, task = digits
    stepper = optimiser(list(model.parameters()))  # momentum from before the pruning, too
    x, y = next(iter(task.batches("train")))
    F.cross_entropy(model(x), y).backward()
    stepper.step()
    PruneWeights(sparsity=0.7).apply(model, context(model, task))
    gone = [layer.weight == 0 for layer in select(model)]
    before = [layer.weight.detach().clone() for layer in select(model)]
    model.train()
    for _ in range(100):
        stepper.zero_grad()
        F.cross_entropy(model(x), y).backward()
        stepper.step()
    for layer, zero, old in zip(select(model), gone, before, strict=True):
        assert not layer.weight[zero].any()
        assert not torch.equal(layer.weight, old), "the others are trained"


def test_ninety_percent_cost_little(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    ctx = context(model, task)
    for step in load_recipe("mag-prune").steps:
        model = step.apply(model, ctx)
    assert sum(zeros(model)) == round(0.9 * sum(sizes(model)))
    # 300 images to test on; a point is three of them
    assert evaluate(model, task).value >= dense - 0.01
