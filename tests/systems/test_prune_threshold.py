# SPDX-License-Identifier: Apache-2.0
"""Threshold policies on trained layers: LAMP, Erdős–Rényi-Kernel, standard deviation."""

import copy
import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from rarefy.measure.quality import evaluate
from rarefy.prune.allocation import erk_densities, lamp_scores, std_mask
from rarefy.prune.prune_weights import PruneWeights
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def pruned(model: nn.Module, task: Task, allocation: str, sparsity: float) -> list[int]:
    """How many weights each layer keeps."""
    copied = copy.deepcopy(model)
    ctx = Context(task, model, torch.device("cpu"), 0, {}, None)
    PruneWeights(sparsity=sparsity, allocation=allocation).apply(copied, ctx)  # type: ignore[arg-type]
    return [int((layer.weight != 0).sum()) for layer in select(copied)]


def test_lamp_scores_the_largest_one_and_never_empties_a_layer(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    layers = select(model)
    for layer in layers:
        scores = lamp_scores(layer.weight.detach().abs())
        assert float(scores.max()) == 1.0
        assert int((scores == 1.0).sum()) == 1
        w = layer.weight.detach().abs().flatten().double().sort().values
        expected = w.square() / w.square().flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(scores.flatten().sort().values, expected.sort().values.float())
    total = sum(layer.weight.numel() for layer in layers)
    kept = pruned(model, task, "lamp", 1 - len(layers) / total)
    assert kept == [1] * len(layers)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9, 0.99])
def test_erk_densities_meet_the_budget(digits: tuple[nn.Module, Task], sparsity: float) -> None:
    model, task = digits
    shapes = [layer.weight.shape for layer in select(model)]
    sizes = [math.prod(shape) for shape in shapes]
    densities = erk_densities(shapes, 1 - sparsity)
    assert max(densities) <= 1
    budget = (1 - sparsity) * sum(sizes)
    assert abs(sum(d * n for d, n in zip(densities, sizes, strict=True)) - budget) < 1
    kept = pruned(model, task, "erk", sparsity)
    assert abs(sum(kept) - budget) <= 1
    assert all(abs(k - d * n) <= 1 for k, d, n in zip(kept, densities, sizes, strict=True))


@pytest.mark.parametrize("quality", [0.25, 1.0, 1.7])
def test_the_std_rule_on_a_gaussian_layer(quality: float) -> None:
    w = torch.randn(300, 784, generator=torch.Generator().manual_seed(3)) * 0.02
    kept = float(std_mask(w, quality).double().mean())
    assert kept == pytest.approx(2 * (1 - NormalDist().cdf(quality)), abs=0.01)


def test_policies_spread_one_budget_differently(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    policies = ("local", "global", "lamp", "erk", "std", "normalised")
    kept = {policy: pruned(model, task, policy, 0.9) for policy in policies}
    sums = {sum(counts) for policy, counts in kept.items() if policy != "local"}
    assert len(sums) == 1
    assert len({tuple(counts) for counts in kept.values()}) == len(policies)


def test_the_recipe_keeps_accuracy(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {}, None)
    for step in load_recipe("prune-threshold").steps:
        model = step.apply(model, ctx)
    assert evaluate(model, task).value >= dense - 0.015
