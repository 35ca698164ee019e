# SPDX-License-Identifier: Apache-2.0
"""Row slq: clusters that lose least go first, what is frozen never moves, 2^b values are left."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

import rarefy.quantize.single_level as single_level
from rarefy.measure.quality import evaluate
from rarefy.quantize.single_level import cluster_losses, freeze
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def test_frozen_clusters_lose_no_more_than_free_ones() -> None:
    torch.manual_seed(0)
    w = torch.randn(40, 50)
    frozen, held, used = freeze(w, torch.zeros(40, 50, dtype=torch.bool), 8, last=False)
    assert used == 4
    assert len(held[frozen].unique()) == 4
    assert torch.equal(held[~frozen], w[~frozen])
    losses = {
        float(level): float((w[frozen & (held == level)].double() - float(level)).square().mean())
        for level in held[frozen].unique()
    }
    everything, values, _ = freeze(w, torch.zeros(40, 50, dtype=torch.bool), 8, last=True)
    assert bool(everything.all())
    others = [
        float((w[values == level].double() - float(level)).square().mean())
        for level in values.unique()
        if not bool(losses.keys() & {float(level)})
    ]
    assert max(losses.values()) <= min(others) + 1e-9


def test_loss_of_a_cluster() -> None:
    found = cluster_losses(
        np.array([1.0, 3.0, 9.0]), np.array([2.0, 9.0, 5.0]), np.array([0, 0, 1])
    )
    assert found.tolist() == [1.0, 0.0, np.inf]


def test_the_recipe_freezes_for_good(digits: tuple[nn.Module, Task], monkeypatch: object) -> None:
    model, task = digits
    (step,) = load_recipe("slq").steps
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(w: Tensor, frozen: Tensor, levels: int, last: bool) -> tuple[Tensor, Tensor, int]:
        result = freeze(w, frozen, levels, last)
        assert bool(result[0][frozen].all())  # the frozen set only grows
        assert torch.equal(result[1][frozen], w.detach()[frozen])
        seen.append(result[:2])
        return result

    monkeypatch.setattr(single_level, "freeze", watched)  # type: ignore[attr-defined]
    before = evaluate(model, task).value
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    found = step.apply(model, context)
    layers = select(found)
    for place, layer in enumerate(layers):
        w = layer.weight.detach()
        assert len(w.unique()) <= 32
        for number in range(3):  # what was frozen in a round has the same value at the end
            frozen, held = seen[number * len(layers) + place]
            assert torch.equal(w[frozen], held[frozen])
    shares = [row["fc1"] for row in context.record["frozen"]]
    assert shares[0] < shares[1] < shares[2] == 1
    assert evaluate(found, task).value >= before - 0.02
