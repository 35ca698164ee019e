# SPDX-License-Identifier: Apache-2.0
"""Row coreset: nothing lost at k = n, weighting pays at the outputs, mixtures are least-squares ones."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rarefy as rf
from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.quantize.coreset_filters import CoresetFilters, coreset, mixed
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.store.rfy import read
from rarefy.task import Task


def made() -> tuple[Tensor, Tensor]:
    """Filters (30, 12) and rows of correlated inputs (400, 12)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator) ** 3
    return torch.randn(30, 12, generator=generator), rows


def error(W: Tensor, C: Tensor, M: Tensor, rows: Tensor) -> float:
    return float((rows.double() @ (W.double() - M @ C).mT).square().mean())


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(12, 8), nn.Linear(4, 5, bias=False)]
)
def test_with_all_filters_nothing_is_lost(layer: nn.Module) -> None:
    W = layer.weight.detach().flatten(1)
    C, M = coreset(W, None, len(W))
    x = torch.randn(5, 3, 9, 9) if isinstance(layer, nn.Conv2d) else torch.randn(5, W.shape[1])
    with torch.no_grad():
        assert torch.allclose(mixed(layer, C, M)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("k", [2, 5, 9])
def test_weighting_by_activations_pays_at_the_outputs(k: int) -> None:
    W, rows = made()
    H = rows.mT @ rows / len(rows)
    weighted, plain = coreset(W, H, k), coreset(W, None, k)
    assert error(W, *weighted, rows) < error(W, *plain, rows)


def test_the_mixture_is_the_least_squares_one() -> None:
    W, rows = made()
    C, M = coreset(W, rows.mT @ rows / len(rows), 5)
    best = error(W, C, M, rows)
    for seed in range(5):
        off = 1e-3 * torch.randn(M.shape, generator=torch.Generator().manual_seed(seed)).double()
        assert error(W, C, M + off, rows) > best


def test_layers_that_can_not_shrink_stay(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    found = CoresetFilters(ratio=0.1, weighted=False).apply(model, context)
    assert isinstance(found.conv1, nn.Conv2d)  # one input channel: k would be 0
    assert (
        context.record["filters"].keys() == {"conv2", "fc1"} or "fc1" in context.record["filters"]
    )


def test_the_recipe_saves_without_training(digits: tuple[nn.Module, Task], tmp_path: Path) -> None:
    model, task = digits
    before = evaluate(model, task).value
    result = rf.compress(model, task, load_recipe("coreset"))
    folder = result.save(tmp_path / "out")
    size = (folder / "model.rfy").stat().st_size
    assert size * 6 < sum(p.numel() * 4 for p in model.parameters())
    weights = {n: p.detach().numpy() for n, p in bake(result.model).named_parameters()}
    with read(folder / "model.rfy") as archive:
        for name, weight in weights.items():
            assert np.array_equal(archive[name], weight), name
    assert evaluate(result.model, task).value > before - 0.1
