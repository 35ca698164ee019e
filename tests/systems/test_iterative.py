# SPDX-License-Identifier: Apache-2.0
"""Row iterative: exact end points, a roll-back that is bit-equal, rounds that beat one shot."""

import copy

import pytest
import torch

from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import PruneWeights
from rarefy.prune.schedule import SCHEDULES, cubic, geometric
from rarefy.step import Context


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_end_points_are_exact_and_growth_is_monotone(name):
    schedule = SCHEDULES[name]
    values = [schedule(i / 50, 0.9, 0.2) for i in range(51)]
    assert (values[0], values[-1]) == (0.2, 0.9)
    assert values == sorted(values)


def test_formulas():
    assert cubic(0.5, 0.9, 0.0) == pytest.approx(0.9 - 0.9 * 0.125)
    assert geometric(0.25, 0.9) == pytest.approx(1 - 0.1**0.25)


def context(model, task):
    return Context(task, model, torch.device("cpu"), 0, {})


def test_a_round_that_loses_too_much_is_undone_bit_for_bit(digits):
    model, task = digits
    teacher = copy.deepcopy(model)
    step = PruneWeights(sparsity=0.995, schedule="linear", rounds=2, tolerance=0.05)
    good = PruneWeights(sparsity=0.995 / 2).apply(copy.deepcopy(model), context(teacher, task))
    found = step.apply(model, context(teacher, task))
    kept = [(p == q).all() for p, q in zip(weights(found), weights(good), strict=True)]
    assert all(kept)


def weights(model):
    return [
        m.weight.detach()
        for m in model.modules()
        if isinstance(getattr(m, "weight", None), torch.Tensor)
    ]


def test_rounds_are_at_least_as_good_as_one_shot_with_the_same_last_repair(
    digits_network, digits_task
):
    results = {}
    for name, step in {
        "one-shot": PruneWeights(sparsity=0.98, epochs=2, rate=0.02),
        "cubic": PruneWeights(sparsity=0.98, schedule="cubic", rounds=4, epochs=2, rate=0.02),
    }.items():
        found = step.apply(copy.deepcopy(digits_network), context(digits_network, digits_task))
        results[name] = evaluate(found, digits_task).value
    assert results["cubic"] >= results["one-shot"]
    assert results["cubic"] > 0.8
