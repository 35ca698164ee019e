# SPDX-License-Identifier: Apache-2.0
"""Rounds of pruning: tied weights, roll-back, resume."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

import rarefy.prune.rounds as module_under_test
from rarefy.forms.mask import mask_of, set_mask
from rarefy.loops.modes import copy_state
from rarefy.loops.optimise import Training
from rarefy.prune.allocation import local
from rarefy.prune.rounds import Rounds, prune_in_rounds, sparsity
from rarefy.select import Layer, select
from rarefy.step import Context
from rarefy.task import Task


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 1).long()
    batches = DataLoader(TensorDataset(x, y), batch_size=20)
    return Task("toy", example=x[:2], train=batches, validation=batches)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def context(folder: Path | None = None) -> Context:
    return Context(task(), network().eval(), torch.device("cpu"), 7, {}, folder)


def by_magnitude(layers: list[Layer], end: float):  # type: ignore[no-untyped-def]
    def choose(progress: float) -> list[Tensor]:
        return local([x.weight.detach().abs() for x in layers], progress * end)

    return choose


def pruned(
    ctx: Context, tolerance: float | None = None, epochs: int = 1, number: int = 3
) -> nn.Module:
    model = network()
    layers = select(model)
    rounds = Rounds("prune", number, Training(epochs, 0.05), tolerance)
    return prune_in_rounds(model, ctx, layers, rounds, by_magnitude(layers, 0.9))


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = copy_state(a), copy_state(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_rounds_are_told_and_zeros_grow() -> None:
    ctx = context()
    model = pruned(ctx)
    assert [row["round"] for row in ctx.record["rounds"]] == [1, 2, 3]
    grown = [row["sparsity"] for row in ctx.record["rounds"]]
    sizes = 6 * 16, 16 * 3
    expected = [sum(round(k / 3 * 0.9 * n) for n in sizes) / sum(sizes) for k in (1, 2, 3)]
    assert grown == pytest.approx(expected)
    assert not model.training
    assert len(ctx.record["training"]) == 3
    assert [row["epoch"] for row in ctx.record["training"]] == [1, 2, 3]


def test_a_round_that_costs_too_much_is_undone_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    real = module_under_test.put_state

    def watched(model: nn.Module, state: dict[str, Tensor]) -> None:
        states.append(state)
        real(model, state)

    monkeypatch.setattr(module_under_test, "put_state", watched)
    scores = iter([0.9, 0.89, 0.5])  # before, after round 1, after round 2
    monkeypatch.setattr(module_under_test, "metric", lambda *_: next(scores))
    ctx = context()
    model = pruned(ctx, tolerance=0.02, number=5)
    assert [row["undone"] for row in ctx.record["rounds"]] == [False, True]
    after_first = pruned(context(), number=5, epochs=0)  # only for its structure
    assert copy_state(model).keys() == copy_state(after_first).keys()
    (good,) = states
    assert all(torch.equal(t, good[n]) for n, t in copy_state(model).items())
    # and that state is the one after the first round of an undisturbed run
    monkeypatch.undo()
    other = network()
    layers = select(other)
    ends = by_magnitude(layers, 0.9)
    rounds = Rounds("prune", 5, Training(1, 0.05), None)
    stop = RuntimeError("enough")

    def choose(progress: float) -> list[Tensor]:
        if progress > 0.3:
            raise stop
        return ends(progress)

    with pytest.raises(RuntimeError, match="enough"):
        prune_in_rounds(other, context(), layers, rounds, choose)
    assert same(model, other.eval())
    assert "was undone" in ctx.record["notes"][0]
    assert sparsity(select(model)) == ctx.record["rounds"][0]["sparsity"]


def test_a_first_round_that_is_undone_leaves_the_network_as_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    before = copy_state(model)
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(module_under_test, "metric", lambda *_: next(scores))
    layers = select(model)
    rounds = Rounds("prune", 2, Training(1, 0.05), tolerance=0.5)
    after = prune_in_rounds(model, context(), layers, rounds, by_magnitude(layers, 0.9))
    assert copy_state(after).keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in copy_state(after).items())
    assert not any(parametrize.is_parametrized(m) for m in after.modules())


def test_the_real_metric_decides() -> None:
    ctx = context()
    model = network()
    layers = select(model)

    def everything(_: float) -> list[Tensor]:
        return [torch.zeros_like(x.weight, dtype=torch.bool) for x in layers]

    learn = Rounds("learn", 1, Training(20, 0.1))
    prune_in_rounds(model, ctx, layers, learn, by_magnitude(layers, 0.0))
    prune_in_rounds(model, ctx, layers, Rounds("prune", 1, Training(0), 0.1), everything)
    assert ctx.record["rounds"][-1]["undone"]
    assert sparsity(layers) == 0.0


def test_tied_weights_wear_the_same_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    ctx = context()
    layers = select(model)
    assert len(layers) == 1
    prune_in_rounds(model, ctx, layers, Rounds("p", 1, Training(0)), by_magnitude(layers, 0.5))
    assert torch.equal(model[0].weight, model[1].weight)
    assert int((model[1].weight == 0).sum()) == 8
    assert (
        model[0].parametrizations.weight.original is model[1].parametrizations.weight.original  # type: ignore[union-attr]
    )


def test_what_was_pruned_stays_pruned() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[0] = True
    set_mask(model[0], keep)
    layers = select(model)

    def all_of_it(_: float) -> list[Tensor]:
        return [torch.ones(4, 4, dtype=torch.bool)]

    prune_in_rounds(model, context(), layers, Rounds("p", 1, Training(0)), all_of_it)
    assert torch.equal(mask_of(model[0]), keep)


def test_an_interrupted_run_goes_on_after_its_last_round(tmp_path: Path) -> None:
    whole_record = context()
    whole = pruned(whole_record)
    model, ctx = network(), context(tmp_path)
    layers = select(model)
    ends, asked = by_magnitude(layers, 0.9), []

    def killed(progress: float) -> list[Tensor]:
        if progress == 1:
            raise KeyboardInterrupt
        return ends(progress)

    rounds = Rounds("prune", 3, Training(1, 0.05))
    with pytest.raises(KeyboardInterrupt):
        prune_in_rounds(model, ctx, layers, rounds, killed)
    model, again = network(), context(tmp_path)
    layers = select(model)
    ends = by_magnitude(layers, 0.9)

    def observed(progress: float) -> list[Tensor]:
        asked.append(progress)
        return ends(progress)

    prune_in_rounds(model, again, layers, rounds, observed)
    assert asked == [1.0], "the first two rounds are not done again"
    assert same(model, whole)
    assert again.record["rounds"] == whole_record.record["rounds"]
    curves = [[row["loss"] for row in c.record["training"]] for c in (again, whole_record)]
    assert curves[0] == curves[1]


def test_progress_of_another_start_is_ignored(tmp_path: Path) -> None:
    pruned(context(tmp_path))
    model = network()
    with torch.no_grad():
        model[0].weight += 1  # type: ignore[operator]
    layers, asked = select(model), []
    ends = by_magnitude(layers, 0.9)

    def observed(progress: float) -> list[Tensor]:
        asked.append(progress)
        return ends(progress)

    rounds = Rounds("prune", 3, Training(1, 0.05))
    prune_in_rounds(model, context(tmp_path), layers, rounds, observed)
    assert len(asked) == 3
