# SPDX-License-Identifier: Apache-2.0
"""Repair training: whom it listens to, what it keeps, how it resumes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rarefy.loops.repair as module_under_test
from rarefy.errors import RecipeError
from rarefy.forms.codebook import Codebook
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import dress
from rarefy.loops.modes import copy_state
from rarefy.loops.optimise import Training
from rarefy.loops.repair import part_seed, repair
from rarefy.step import Context
from rarefy.task import Task, call


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3)
    )


def context(labelled: bool = True, folder: Path | None = None, validation: bool = True) -> Context:
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x[:, :3].argmax(1)) if labelled else TensorDataset(x)
    batches = DataLoader(data, batch_size=16, shuffle=True)
    held = DataLoader(data, batch_size=48) if validation else None
    task = Task("toy", example=x[:2], train=batches, validation=held, labelled=labelled)
    return Context(task, network(9).eval(), torch.device("cpu"), 3, {}, folder)


SETTINGS = Training(epochs=3, rate=0.05)


def equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = copy_state(a), copy_state(b)
    return all(torch.equal(left[n], right[n]) for n in left)


def agreement(model: nn.Module, ctx: Context) -> float:
    """The divergence between the network's and its teacher's answers."""
    x = torch.cat([batch[0] for batch in ctx.task.train or []])
    with torch.no_grad():
        return float(F.mse_loss(model.eval()(x), ctx.teacher(x)))


def test_the_teacher_is_only_read() -> None:
    ctx = context()
    ctx.teacher.train()
    before = copy_state(ctx.teacher)
    repair(network(), ctx, SETTINGS, alpha=0.5)
    assert all(torch.equal(t, before[n]) for n, t in copy_state(ctx.teacher).items())
    assert ctx.teacher.training
    assert all(p.grad is None for p in ctx.teacher.parameters())


def test_without_the_teacher_it_is_plain_training(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    monkeypatch.setattr(ctx.teacher, "forward", None)  # a call would fail
    ours = repair(network(), ctx, SETTINGS, alpha=0.0, label="x")
    theirs, seed = network(), part_seed(ctx.seed, "x")
    from rarefy.loops.train import train

    for batch in train(theirs, ctx.task.batches("train"), SETTINGS, seed=seed):
        batch.minimise(F.cross_entropy(call(batch.model, batch.inputs), batch.targets))
    assert equal(ours, theirs)
    assert not ours.training


def test_default_listens_to_labels_where_there_are_any() -> None:
    assert equal(
        repair(network(), context(), SETTINGS), repair(network(), context(), SETTINGS, alpha=0)
    )
    ctx = context(labelled=False)
    start = agreement(network(), ctx)
    settings = Training(epochs=20, rate=0.1)
    assert agreement(repair(network(), ctx, settings), ctx) < 0.5 * start


def test_a_mixture_is_the_weighted_sum() -> None:
    seen = []

    def imitate(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
        seen.append((s.detach(), t, temperature))
        return (s - t).square().mean()

    ctx = context()
    model = network()
    frozen = Training(epochs=1, rate=1e-12, warmup=0)
    repair(model, ctx, frozen, alpha=0.25, imitate=imitate, temperature=lambda p: 1 + p)
    assert [t for _, _, t in seen] == pytest.approx([1, 1 + 1 / 3, 1 + 2 / 3])
    losses = [(s - t).square().mean() for s, t, _ in seen]
    told = ctx.record["training"][0]["loss"]
    assert told > 0.25 * float(torch.stack(losses).mean())  # the labels' share comes on top


def test_labels_that_are_not_there_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"alpha=0\.5 asks for labels.*write alpha=1"):
        repair(network(), context(labelled=False), SETTINGS, alpha=0.5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_forms_hold(optimiser: str) -> None:
    model = network()
    keep = torch.rand(12, 6) > 0.5
    set_mask(model[0], keep)
    indices = torch.randint(0, 4, (3, 12))
    dress(model[4], "weight", Codebook(indices, 3, zero=True))
    settings = Training(epochs=2, rate=0.05, optimiser=optimiser)  # type: ignore[arg-type]
    before = model[4].weight.detach().clone()
    repair(model, context(), settings, alpha=0.5)
    assert not model[0].weight[~keep].any()
    assert len(model[4].weight.unique()) <= 4
    assert not model[4].weight[indices == 0].any()
    assert not torch.equal(model[4].weight, before)


def test_curves_of_several_trainings_follow_each_other() -> None:
    ctx = context()
    model = network()
    repair(model, ctx, SETTINGS, label="one")
    repair(model, ctx, Training(epochs=2), label="two")
    rows = ctx.record["training"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["part"] for row in rows] == ["one"] * 3 + ["two"] * 2
    assert all({"loss", "rate", "seconds", "metric"} <= row.keys() for row in rows)
    silent = context(validation=False)
    repair(network(), silent, SETTINGS)
    assert "metric" not in silent.record["training"][0]
    repair(network(), silent, Training(epochs=0))
    assert len(silent.record["training"]) == 3


def test_the_best_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    states, scores = [], iter([0.5, 0.9, 0.2, 0.3, 0.4, 0.5])

    def judge(model: nn.Module) -> float:
        states.append(copy_state(model))
        return next(scores)

    monkeypatch.setattr(module_under_test, "accuracy_watch", lambda *_: judge)
    model = repair(network(), context(), Training(epochs=9, rate=0.1, patience=2))
    assert len(states) == 5
    now = copy_state(model)
    assert all(torch.equal(now[n], t) for n, t in states[1].items())


def test_an_interrupted_repair_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = network()
    whole = repair(copy.deepcopy(start), context(), SETTINGS, alpha=0.5)
    calls = 0

    def failing(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 7:  # in the third epoch
            raise KeyboardInterrupt
        return module_under_test.imitation_loss(s, t, temperature)

    with pytest.raises(KeyboardInterrupt):
        repair(copy.deepcopy(start), context(folder=tmp_path), SETTINGS, alpha=0.5, imitate=failing)
    assert [p.name for p in tmp_path.iterdir()] == ["repair"]
    calls = -100
    ctx = context(folder=tmp_path)
    again = repair(copy.deepcopy(start), ctx, SETTINGS, alpha=0.5, imitate=failing)
    assert calls == -97, "only the third epoch was done again"
    assert equal(whole, again)
    assert len(ctx.record["training"]) == 3


def test_parts_do_not_share_seed_or_checkpoint() -> None:
    assert part_seed(1, "round 1") != part_seed(1, "round 2")
    assert part_seed(1, "a") != part_seed(2, "a")
