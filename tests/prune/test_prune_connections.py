# SPDX-License-Identifier: Apache-2.0
"""The three stages of Han et al. on a toy network."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import RecipeError
from rarefy.forms.mask import mask_of
from rarefy.prune.allocation import deviation
from rarefy.prune.prune_connections import PruneConnections
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)
    )


def context() -> Context:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    batches = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    task = Task("toy", example=x[:2], train=batches, validation=batches)
    return Context(task, network().eval(), torch.device("cpu"), 0, {}, None)


def run(ctx: Context | None = None, **fields: object) -> nn.Module:
    return PruneConnections(**fields).apply(network(), ctx or context())  # type: ignore[arg-type]


def test_weights_below_the_factor_times_the_deviation_go() -> None:
    original = {x.name: x.weight.detach().clone() for x in select(network())}
    ctx = context()
    model = run(ctx, quality=0.8, rounds=1, epochs=0)
    for x in select(model):
        w = original[x.name]
        expected = w.abs() >= 0.8 * deviation(w)
        assert not (mask_of(x.module) & ~expected).any()
        assert torch.equal(mask_of(x.module), expected) or sum(
            row["constant"] + row["unheard"] for row in ctx.record["dead_units"]
        )


def test_factors_by_pattern() -> None:
    model = run(quality=0.5, qualities={"type:Linear": 1.0, "last": 0.0}, rounds=1, epochs=0)
    kept = {x.name: float((x.weight != 0).float().mean()) for x in select(model)}
    assert kept["5"] == 1.0
    assert kept["0"] < 0.55  # uniform weights: |w| < std keeps 1 - 1/sqrt(3)
    with pytest.raises(RecipeError, match="matches no layer"):
        run(qualities={"conv": 1.0})


def test_rounds_reach_the_same_threshold_step_by_step() -> None:
    ctx = context()
    run(ctx, quality=1.0, rounds=4, epochs=0)
    grown = [row["sparsity"] for row in ctx.record["rounds"]]
    assert grown == sorted(grown)
    assert len(set(grown)) == 4
    once = context()
    run(once, quality=1.0, rounds=1, epochs=0)
    assert grown[-1] == pytest.approx(once.record["rounds"][-1]["sparsity"], abs=1e-9)


def test_dropout_follows_the_connections_of_the_layer_behind_it() -> None:
    model = run(quality=1.0, rounds=2, epochs=1)
    kept = float((model[3].weight != 0).float().mean())
    assert kept < 0.7
    assert model[2].p == pytest.approx(0.5 * kept**0.5)


def test_no_unit_is_left_without_inputs_or_listeners() -> None:
    model = run(quality=1.6, rounds=3, epochs=1)  # so hard that units die
    first, second, third = (x.weight != 0 for x in select(model))
    assert not (first.any(1) & ~second.any(0)).any()
    assert not (second.any(1) & ~third.any(0)).any()
    assert not (second.any(0) & ~first.any(1)).any()
    assert not (third.any(0) & ~second.any(1)).any()


def test_learning_comes_first() -> None:
    ctx = context()
    run(ctx, learn=2, rounds=1, epochs=1)
    assert [row["part"] for row in ctx.record["training"]] == [
        "learn connections", "learn connections", "prune-connections",
    ]  # fmt: skip
    rates = [row["rate"] for row in ctx.record["training"]]
    assert max(rates[2:]) < max(rates[:2])
