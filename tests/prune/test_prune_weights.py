# SPDX-License-Identifier: Apache-2.0
"""The step that prunes weights: budgets, patterns, granularities, needs."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import ModelError, RecipeError
from rarefy.prune.prune_weights import PruneWeights, choose_masks
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


def context(model: nn.Module, labelled: bool = True) -> Context:
    x = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, torch.arange(24) % 4) if labelled else TensorDataset(x)
    batches = DataLoader(data, batch_size=8)
    task = Task("toy", example=x[:2], train=batches, validation=batches, labelled=labelled)
    return Context(task, network(), torch.device("cpu"), 0, {}, None)


def zeros(model: nn.Module) -> dict[str, int]:
    return {x.name: int((x.weight == 0).sum()) for x in select(model)}


def run(model: nn.Module, labelled: bool = True, **fields: object) -> nn.Module:
    step = PruneWeights(**fields)  # type: ignore[arg-type]
    return step.apply(model, context(model, labelled))


@pytest.mark.parametrize("allocation", ["local", "global", "lamp", "erk", "std", "normalised"])
@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "sensitivity", "taylor"])
def test_counts(allocation: str, criterion: str) -> None:
    found = zeros(run(network(), sparsity=0.7, allocation=allocation, criterion=criterion))
    sizes = {"0": 216, "2": 576, "4": 128}
    assert sum(found.values()) == round(0.7 * 920)
    if allocation == "local":
        assert found == {name: round(0.7 * n) for name, n in sizes.items()}


def test_layers_and_exclude() -> None:
    model = network()
    first = model[0].weight.clone()  # type: ignore[operator]
    found = zeros(run(model, sparsity=0.5, exclude=("first",)))
    assert found["0"] == 0
    assert found["2"] + found["4"] == round(0.5 * 704)
    assert torch.equal(model[0].weight, first)  # type: ignore[arg-type]
    assert zeros(run(network(), sparsity=0.5, layers="type:Linear")) == {"0": 0, "2": 0, "4": 64}


def test_sparsities_by_pattern_the_last_counts() -> None:
    found = zeros(run(network(), sparsities={"type:Conv2d": 0.25, "2": 0.75, "4": 0.5}))
    assert found == {"0": 54, "2": 432, "4": 64}
    assert zeros(run(network(), sparsities={"4": 0.5})) == {"0": 0, "2": 0, "4": 64}
    with pytest.raises(RecipeError, match="'fc' matches no layer"):
        run(network(), sparsities={"fc": 0.5})


@pytest.mark.parametrize("rounds", [1, 2])
def test_two_of_four(rounds: int) -> None:
    schedule = "linear" if rounds > 1 else "one-shot"
    model = run(network(), granularity="2:4", rounds=rounds, schedule=schedule)
    groups = model[2].weight.movedim(1, -1).reshape(-1, 4)  # type: ignore[operator]
    assert torch.equal((groups != 0).sum(1), torch.full((len(groups),), 2))
    assert zeros(model)["0"] == 8 * 9, "three inputs keep two"


def test_blocks_fall_together() -> None:
    model = run(network(), granularity="4x1", sparsity=0.5, allocation="local")
    blocks = (model[4].weight != 0).view(1, 4, 32).sum(1)  # type: ignore[operator]
    assert set(blocks.flatten().tolist()) == {0, 4}
    assert zeros(model) == {"0": 108, "2": 288, "4": 64}


@pytest.mark.parametrize("schedule", ["linear", "geometric", "cubic"])
def test_rounds_end_at_the_budget(schedule: str) -> None:
    model = network()
    ctx = context(model)
    PruneWeights(sparsity=0.9, schedule=schedule, rounds=4).apply(model, ctx)  # type: ignore[arg-type]
    assert sum(zeros(model).values()) == round(0.9 * 920)
    grown = [row["sparsity"] for row in ctx.record["rounds"]]
    assert grown == sorted(grown)


def test_a_second_step_goes_on_from_the_first() -> None:
    model = run(network(), sparsity=0.5)
    before = {x.name: x.weight == 0 for x in select(model)}
    run(model, sparsity=0.8)
    assert sum(zeros(model).values()) == round(0.8 * 920)
    assert all((x.weight[before[x.name]] == 0).all() for x in select(model))
    run(model, sparsity=0.3)
    assert sum(zeros(model).values()) == round(0.8 * 920), "nothing comes back"


def test_repair_without_labels_learns_from_the_original() -> None:
    model = network()
    ctx = context(model, labelled=False)
    PruneWeights(sparsity=0.5, epochs=1).apply(model, ctx)
    assert len(ctx.record["training"]) == 1
    assert sum(zeros(model).values()) == round(0.5 * 920)


def test_needs_follow_the_settings() -> None:
    assert PruneWeights().needs == frozenset()
    assert PruneWeights(epochs=1).needs == {"train"}
    assert PruneWeights(criterion="taylor").needs == {"train", "labels"}


def test_bad_input() -> None:
    with pytest.raises(RecipeError, match="3 rounds of a one-shot"):
        PruneWeights(rounds=3)
    with pytest.raises(RecipeError, match="granularity"):
        PruneWeights(granularity="2/4")
    with pytest.raises(RecipeError, match="keeps everything"):
        PruneWeights(granularity="4:2")
    with pytest.raises(RecipeError, match="sparsity"):
        PruneWeights(sparsity=1.0)
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(ModelError, match="'4' holds NaN"):
        run(model)


def test_choose_masks_of_a_schedule_keeps_more_of_m_at_first() -> None:
    w = [torch.randn(2, 8)]
    kept = [choose_masks([w[0].abs()], w, s, granularity="1:4")[0].sum() for s in (0.0, 0.5, 0.75)]
    assert [int(k) for k in kept] == [16, 8, 4]
