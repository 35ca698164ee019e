# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: masks, shared values and levels hold after every step; it resumes exactly and stops early."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from rarefy.distill.finetune import Finetune
from rarefy.forms.affine import OnGrid
from rarefy.forms.codebook import Codebook
from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import dress
from rarefy.loops.modes import copy_state
from rarefy.loops.repair import repair
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(model: nn.Module, task: Task, folder: Path | None = None) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 5, {}, folder)


def dressed(model: nn.Module) -> nn.Module:
    """A mask, a codebook with a fixed zero, and a grid, each on a layer."""
    fc1, fc2, conv2 = model.fc1, model.fc2, model.conv2
    set_mask(fc1, fc1.weight.abs() > fc1.weight.abs().median())  # type: ignore[arg-type, operator, union-attr]
    dress(fc2, "weight", Codebook(torch.randint(0, 9, fc2.weight.shape), 8, zero=True))  # type: ignore[arg-type, union-attr]
    reach = conv2.weight.detach().abs().flatten(1).amax(1)  # type: ignore[operator, union-attr]
    grid = Grid(4, True, True, True)
    dress(conv2, "weight", OnGrid(*grid_for_range(-reach, reach, grid), grid, 0))  # type: ignore[arg-type]
    return model


def test_forms_hold_after_every_step(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    model = dressed(model)
    gone = model.fc1.weight == 0  # type: ignore[union-attr]
    indices = model.fc2.parametrizations.weight[0].indices  # type: ignore[index, union-attr]
    scale = model.conv2.parametrizations.weight[0].scale.clone()  # type: ignore[index, operator, union-attr]
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        assert not model.fc1.weight[gone].any()  # type: ignore[index, union-attr]
        shared = model.fc2.weight  # type: ignore[union-attr]
        for k in range(9):
            assert len(shared[indices == k].unique()) <= 1  # type: ignore[index]
        assert not shared[indices == 0].any()  # type: ignore[index, union-attr]
        codes = model.conv2.weight / scale.view(-1, 1, 1, 1)  # type: ignore[operator, union-attr]
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert float(codes.abs().max()) <= 7.001

    settings = Finetune(epochs=1, rate=0.02).training()
    before = copy_state(model)
    repair(model, context(model, task), settings, alpha=0, after_step=check)
    assert steps == 21
    assert any(not torch.equal(t, before[n]) for n, t in copy_state(model).items())


def test_it_resumes_exactly(
    digits: tuple[nn.Module, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rarefy.loops.repair as loop

    model, task = digits
    step = Finetune(epochs=3, rate=0.02, average=0.9)
    ctx = context(model, task)
    whole = step.apply(copy.deepcopy(model), ctx)
    real, calls = loop.loss_of, 0

    def killed(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 30:  # in the second epoch
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "loss_of", killed)
    with pytest.raises(KeyboardInterrupt):
        step.apply(copy.deepcopy(model), context(model, task, tmp_path))
    again = step.apply(copy.deepcopy(model), context(model, task, tmp_path))
    assert calls == 30 + 2 * 21, "the first epoch is not done again"
    ours, theirs = copy_state(again), copy_state(whole)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_it_stops_early_and_keeps_the_best(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = context(model, task)
    found = Finetune(epochs=30, rate=0.5, patience=1, schedule="constant").apply(model, ctx)
    scores = [row["metric"] for row in ctx.record["training"]]
    assert len(scores) < 30
    assert scores[-1] <= max(scores)
    assert evaluate(found, task, "validation").value == max(scores)


def test_it_recovers_what_pruning_lost(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    ctx = context(model, task)
    prune, finetune = load_recipe("finetune").steps
    model = prune.apply(model, ctx)
    zeros = model.fc1.weight == 0  # type: ignore[union-attr]
    lost = dense - evaluate(model, task).value
    model = finetune.apply(model, ctx)
    left = dense - evaluate(model, task).value
    assert left <= max(lost, 0) + 0.005
    assert left <= 0.01
    assert torch.equal(model.fc1.weight == 0, zeros)  # type: ignore[union-attr]
