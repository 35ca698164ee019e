# SPDX-License-Identifier: Apache-2.0
"""Pruning step by step: schedules, roll-back, and what it gains where one shot collapses."""

import copy
import itertools

import pytest
import torch
from torch import nn

from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import PruneWeights
from rarefy.prune.schedule import SCHEDULES
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {}, None)


def share_of_zeros(model: nn.Module) -> float:
    zeros = sum(int((x.weight == 0).sum()) for x in select(model))
    return zeros / sum(x.weight.numel() for x in select(model))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_end_exactly_and_never_turn_back(name: str) -> None:
    values = [SCHEDULES[name](k / 50, 0.937, 0.1) for k in range(51)]
    assert values[0] == 0.1
    assert values[-1] == 0.937
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_the_rounds_follow_the_cubic_schedule(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = context(model, task)
    PruneWeights(sparsity=0.9, schedule="cubic", rounds=4).apply(model, ctx)
    n = sum(x.weight.numel() for x in select(model))
    expected = [round((0.9 - 0.9 * (1 - k / 4) ** 3) * n) / n for k in range(1, 5)]
    assert [row["sparsity"] for row in ctx.record["rounds"]] == expected


def test_roll_back_returns_the_last_good_state_bit_for_bit(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    step = PruneWeights(
        sparsity=0.999, schedule="linear", rounds=6, epochs=1, rate=0.01, tolerance=0.02
    )
    ctx = context(model, task)
    torch.manual_seed(0)
    found = step.apply(copy.deepcopy(model), ctx)
    rows = ctx.record["rounds"]
    assert rows[-1]["undone"]
    assert not any(row["undone"] for row in rows[:-1])
    assert 1 < len(rows) <= 6
    dense = evaluate(model, task, "validation").value
    assert dense - rows[-1]["metric"] > 0.02
    assert evaluate(found, task, "validation").value == rows[-2]["metric"]
    assert share_of_zeros(found) == rows[-2]["sparsity"]
    # an undisturbed run of the good rounds alone ends in the very same bits
    import rarefy.prune.rounds as loop

    good: list[dict[str, torch.Tensor]] = []
    real = loop.keep_progress

    def watched(model: nn.Module, *rest: object) -> None:
        good.append(copy_state(model))
        real(model, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "keep_progress", watched)
        torch.manual_seed(0)
        step.apply(copy.deepcopy(model), context(model, task))
    state = copy_state(found)
    assert all(torch.equal(state[name], t) for name, t in good[len(rows) - 2].items())


def test_step_by_step_beats_one_shot_where_little_is_left(
    digits: tuple[nn.Module, Task],
) -> None:
    """The same sparsity and as many epochs: 98.5 % at once, or over five rounds."""
    model, task = digits

    def accuracy(step: PruneWeights) -> float:
        found = step.apply(copy.deepcopy(model), context(model, task))
        assert share_of_zeros(found) == pytest.approx(0.985, abs=1e-4)
        both = [evaluate(found, task, role) for role in ("test", "validation")]
        return sum(q.value * q.examples for q in both) / sum(q.examples for q in both)

    at_once = accuracy(PruneWeights(sparsity=0.985, epochs=20))
    in_rounds = accuracy(PruneWeights(sparsity=0.985, schedule="cubic", rounds=5, epochs=4))
    assert in_rounds >= at_once


def test_the_recipe_reaches_its_sparsity(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    for step in load_recipe("iterative").steps:
        model = step.apply(model, context(model, task))
    assert share_of_zeros(model) == pytest.approx(0.95, abs=1e-4)
    assert evaluate(model, task).value >= dense - 0.06  # one epoch of 21 steps after each round
