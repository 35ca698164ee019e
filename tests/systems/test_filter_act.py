# SPDX-License-Identifier: Apache-2.0
"""Zeros of activations: a dead channel scores 0 and goes without loss, and sums over batches are exact."""

import copy

import torch
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.loops.modes import evaluating
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_criteria import unit_scores
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def test_dead_channels_are_those_that_go_and_nothing_is_lost(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    first = select(model)[0].module
    n = first.weight.shape[0]
    dead = torch.arange(0, n, 2)
    with torch.no_grad():
        first.weight[dead] = 0  # type: ignore[index,operator]
        first.bias[dead] = -1.0  # type: ignore[index,operator]
        before = model.eval()(task.example)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    groups = couple(model, task.example).groups
    for criterion in ("apoz", "activation", "activation-norm", "taylor-activation"):
        found = unit_scores(model, groups, criterion, task, 128, 0)[groups[0].name]
        assert not found[dead].any()
    step = PruneChannels(
        criterion="apoz", layers=select(model)[0].name, sparsity=len(dead) / n, largest=0.9
    )
    small = step.apply(copy.deepcopy(model), ctx)
    assert select(small)[0].weight.shape[0] == n - len(dead)
    with torch.no_grad():
        assert torch.allclose(small(task.example), before, atol=1e-5)


def test_batches_of_any_size_give_the_same_scores(digits: tuple[nn.Module, Task]) -> None:
    import dataclasses

    model, task = digits
    x, y = (torch.cat(part)[:120] for part in zip(*task.batches("validation"), strict=True))
    groups = couple(model, task.example).groups

    def scored(sizes: list[int]) -> dict[str, torch.Tensor]:
        batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
        cut = dataclasses.replace(task, calibration=batches)
        with evaluating(model):
            return unit_scores(model, groups, "activation", cut, 120, 0)

    one, many = scored([120]), scored([7, 50, 63])
    assert all(torch.allclose(one[n], many[n], rtol=1e-5) for n in one)


def test_the_recipe_needs_no_labels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    recipe = load_recipe("filter-act")
    assert not any("labels" in step.needs for step in recipe.steps)
    before, size = evaluate(model, task).value, parameters(model)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in recipe.steps:
        model = step.apply(model, ctx)
    assert parameters(model) < 0.8 * size
    assert evaluate(model, task).value >= before - 0.05
