# SPDX-License-Identifier: Apache-2.0
"""L1 and L2 regularised pruning: exact zeros by the proximal step alone, more with more strength."""

import copy

import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import PruneWeights
from rarefy.prune.sparsify import Sparsify
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def zeros(model: nn.Module) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in select(model))


def test_only_the_proximal_step_gives_exact_zeros(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    found = {}
    for update in ("prox", "subgradient"):
        for strength in (2e-4, 2e-3):
            ctx = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))
            step = Sparsify(penalty="l1", strength=strength, update=update, epochs=1, rate=0.05)
            found[update, strength] = zeros(step.apply(copy.deepcopy(model), ctx))
    assert found["subgradient", 2e-4] == found["subgradient", 2e-3] == zeros(model) == 0
    assert 0 < found["prox", 2e-4] < found["prox", 2e-3]


def test_the_recipe_keeps_a_tenth_of_the_weights(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    teacher, n = copy.deepcopy(model).eval(), sum(x.weight.numel() for x in select(model))
    for number, step in enumerate(load_recipe("l1l2-prune").steps):
        model, _ = apply_step(step, model, Context(task, teacher, torch.device("cpu"), number))
    assert zeros(model) >= round(0.9 * n)
    assert evaluate(model, task).value > before - 0.02


def test_the_penalty_prepares_for_the_threshold(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher, values = copy.deepcopy(model).eval(), []
    prepare = Sparsify(penalty="l1", strength=2e-3, epochs=3, rate=0.05)
    for steps in ((PruneWeights(sparsity=0.96),), (prepare, PruneWeights(sparsity=0.96))):
        found = copy.deepcopy(model)
        for step in steps:
            found = step.apply(found, Context(task, teacher, torch.device("cpu")))
        values.append(evaluate(found, task).value)
    assert values[1] > values[0] + 0.02
