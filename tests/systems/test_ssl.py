# SPDX-License-Identifier: Apache-2.0
"""Structured sparsity learning: a map that is the minimum, groups exactly zero, a path."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.penalties import group_gains
from rarefy.prune.sparsify import Sparsify
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def run(model: nn.Module, task: Task, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    ctx = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))
    step = Sparsify(**{"penalty": "group-lasso", "epochs": 2, "rate": 0.05, **fields})
    return step.apply(copy.deepcopy(model), ctx), ctx.record


def test_the_map_is_found_by_gradient_descent_too() -> None:
    torch.manual_seed(0)
    w, t = torch.randn(6, dtype=torch.float64), 0.3
    u = w.clone().requires_grad_()
    optimiser = torch.optim.SGD([u], 0.05)
    for _ in range(800):
        optimiser.zero_grad()
        (0.5 * (u - w).square().sum() + t * 6**0.5 * u.norm()).backward()
        optimiser.step()
    sizes = torch.tensor([6.0], dtype=torch.float64)
    found = w * group_gains(w.square().sum()[None], sizes, t)
    assert torch.allclose(found, u.detach(), atol=1e-6)
    assert bool(found.any())


def test_a_stronger_penalty_empties_more_and_the_cut_is_lossless(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    cut = []
    for strength in (0.003, 0.006, 0.012):
        whole, _ = run(model, task, strength=strength, cut=False)
        small, record = run(model, task, strength=strength)
        assert torch.allclose(whole(task.example), small(task.example), atol=1e-5)
        cut.append(sum(record["cut"].values()))
        empty = [
            (whole.get_submodule(name).weight.flatten(1) == 0).all(1)  # type: ignore[union-attr, operator]
            for name in ("conv1", "conv2", "fc1")
        ]
        gone = [min(int(e.sum()), len(e) - 1) for e in empty]  # one unit of each layer stays
        assert sum(gone) == cut[-1], "zero groups are exactly zero"
    assert 0 < cut[0] < cut[1] < cut[2]


def test_the_recipe_shrinks_the_network_at_little_loss(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, first = evaluate(model, task).value, parameters(model)
    teacher = copy.deepcopy(model).eval()
    for number, step in enumerate(load_recipe("ssl").steps):
        model, _ = apply_step(step, model, Context(task, teacher, torch.device("cpu"), number))
    assert parameters(model) < 0.6 * first
    assert evaluate(model, task).value > before - 0.03


@pytest.mark.parametrize("kind", ["filter", "input", "shape"])
def test_groups_of_single_layers_become_zero_as_wholes(
    kind: str, digits: tuple[nn.Module, Task]
) -> None:
    model, task = digits
    found, _ = run(model, task, groups=kind, strength=0.03, layers="conv2", cut=False, epochs=1)
    zero = found.conv2.weight.detach() == 0  # type: ignore[union-attr, operator]
    axes = {"filter": (1, 2, 3), "input": (0, 2, 3), "shape": (0,)}[kind]
    anywhere, everywhere = zero.clone(), zero.clone()
    for axis in axes:
        anywhere, everywhere = anywhere.any(axis, keepdim=True), everywhere.all(axis, keepdim=True)
    assert torch.equal(anywhere, everywhere)
    assert bool(everywhere.any())
    assert not (found.fc1.weight == 0).any()  # type: ignore[union-attr]
