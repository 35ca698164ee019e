# SPDX-License-Identifier: Apache-2.0
"""Learn connections, prune, retrain: the dropout rule, dead neurons, and twelve times fewer weights."""

import copy

import pytest
import torch
from torch import nn

from rarefy.forms.mask import mask_of, set_mask
from rarefy.measure.quality import batches_of, evaluate
from rarefy.prune.connections import adjusted_rate
from rarefy.prune.dead_units import remove_dead_units
from rarefy.prune.prune_connections import PruneConnections
from rarefy.prune.prune_weights import PruneWeights
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {}, None)


def kept(model: nn.Module) -> int:
    return sum(int((layer.weight != 0).sum()) for layer in select(model))


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_a_quarter_of_the_connections_takes_half_the_dropout(rate: float) -> None:
    assert adjusted_rate(rate, before=50_000, after=12_500) == rate / 2


def test_dead_neurons_go_and_answers_stay_bit_equal(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    fc1, fc2, conv2 = model.fc1, model.fc2, model.conv2
    without_inputs = torch.zeros(64, dtype=torch.bool)
    without_inputs[:7] = True
    without_listeners = without_inputs.roll(20)
    set_mask(fc1, ~without_inputs.unsqueeze(1).expand(64, 512))  # type: ignore[arg-type]
    set_mask(fc2, ~without_listeners.expand(10, 64))  # type: ignore[arg-type]
    lost_channel = torch.ones(64, 32, 16, dtype=torch.bool)
    lost_channel[:, 3] = False  # nobody reads channel 3 of conv2
    set_mask(fc1, mask_of(fc1) & lost_channel.flatten(1))  # type: ignore[arg-type]
    with torch.no_grad():
        fc1.bias[:7] = -fc1.bias[:7].abs()  # relu gives 0  # type: ignore[index, union-attr]
    inputs = list(batches_of(task, "calibration", 128))
    before = [model(x) for x in inputs]
    weights = kept(model)
    removed = remove_dead_units(model, select(model), inputs)
    assert removed.constant == 7
    assert removed.unheard == 7 + 7 + 1
    gone = 7 * 10 + 7 * 31 * 16 + 16 * 9  # to 7 constants, into 7 unheard units, into a channel
    assert kept(model) == weights - gone
    assert not mask_of(conv2)[3].any()  # type: ignore[arg-type]
    assert all(torch.equal(model(x), y) for x, y in zip(inputs, before, strict=True))


def test_after_hard_pruning_no_unit_is_half_dead(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    ctx = context(model, task)
    PruneWeights(sparsity=0.99, allocation="global").apply(model, ctx)
    inputs = list(batches_of(task, "calibration", 128))
    before = [model(x) for x in inputs]
    removed = remove_dead_units(model, select(model), inputs)
    assert removed.constant > 0
    assert removed.unheard > 0
    for x, y in zip(inputs, before, strict=True):
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    into, out = model.fc1.weight != 0, model.fc2.weight != 0  # type: ignore[union-attr]
    assert torch.equal(into.any(1), out.any(0)), (
        "every hidden unit has inputs and listeners, or neither"
    )


def test_step_by_step_beats_one_shot(digits: tuple[nn.Module, Task]) -> None:
    """Thresholds by standard deviation, 95 % pruned, ten epochs of retraining in all."""
    model, task = digits

    def accuracy(step: PruneWeights) -> float:
        found = step.apply(copy.deepcopy(model), context(model, task))
        total = sum(layer.weight.numel() for layer in select(found))
        assert kept(found) == total - round(0.95 * total)
        return evaluate(found, task).value

    once = accuracy(PruneWeights(sparsity=0.95, allocation="std", epochs=10))
    again = accuracy(
        PruneWeights(sparsity=0.95, allocation="std", schedule="cubic", rounds=5, epochs=2)
    )
    assert again > once


def test_twelve_times_fewer_weights(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense, total = evaluate(model, task).value, kept(model)
    step = PruneConnections(quality=2.0, rounds=4, epochs=6, rate=0.3)
    found = step.apply(model, context(model, task))
    assert kept(found) <= total / 12
    assert evaluate(found, task).value >= dense - 0.015


def test_the_recipe_is_this_step() -> None:
    (step,) = load_recipe("han2015").steps
    assert isinstance(step, PruneConnections)
