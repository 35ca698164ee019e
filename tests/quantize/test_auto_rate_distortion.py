# SPDX-License-Identifier: Apache-2.0
"""As few bits as a bound on the loss allows: the bound holds, fewer bits break it, the file shows it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.errors import ModelError
from rarefy.measure.quality import evaluate
from rarefy.quantize.auto_rate_distortion import LEAST, NEAR, AutoRateDistortion
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.quantize.rounded_layers import stored_bits
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task


def applied(
    step: RateDistortion, model: nn.Module, task: Task
) -> tuple[nn.Module, dict[str, Any], float]:
    """The network, the record, and what it loses on validation data."""
    record: dict[str, Any] = {}
    context = Context(task, model, torch.device("cpu"), 0, record)
    found = step.apply(copy.deepcopy(model), context)
    before, after = (evaluate(m, task, "validation").value for m in (model, found))
    return found, record, task.metric.drop(before, after)


def rates(record: dict[str, Any]) -> dict[float, float]:
    """What each tried rate lost, as the note tells."""
    told = record["notes"][0].partition(": ")[2].split(", ")
    return {float(t.split()[0]): float(t.split()[-1].rstrip("%")) / 100 for t in told}


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1])
def test_the_bound_holds_and_fewer_bits_break_it(
    digits_network: nn.Module, digits_task: Task, loss: float
) -> None:
    step = AutoRateDistortion(loss=loss, examples=128)
    found, record, lost = applied(step, digits_network, digits_task)
    assert lost <= loss
    tried = rates(record)
    reached = min(rate for rate, value in tried.items() if value <= loss)
    assert record["notes"][0].startswith(
        f"{reached:.2f} bits a weight keep the loss within {loss:.2%}"
    )
    failed = max((r for r in tried if r < reached), default=0.0)
    assert reached <= max(NEAR * failed, LEAST) + 0.01
    assert all(value > loss for rate, value in tried.items() if rate < reached)
    layers = select(found, "*")
    weights = sum(layer.weight.numel() for layer in layers)
    assert sum(map(stored_bits, layers)) == pytest.approx(reached * weights, rel=0.1)


def test_a_larger_loss_takes_fewer_bits(digits_network: nn.Module, digits_task: Task) -> None:
    bits = [
        applied(AutoRateDistortion(loss=loss, examples=128), digits_network, digits_task)[1]["bits"]
        for loss in (0.0, 0.05, 0.3)
    ]
    assert bits[0] > bits[1] > bits[2]


def test_without_labels_answers_are_compared(digits_network: nn.Module, digits_task: Task) -> None:
    data = [(batch[0], None) for batch in digits_task.batches("calibration")]
    bare = Task("bare", digits_task.example, calibration=data, labelled=False)
    record: dict[str, Any] = {}
    context = Context(bare, digits_network, torch.device("cpu"), 0, record)
    step = AutoRateDistortion(loss=0.02, examples=200)
    found = step.apply(copy.deepcopy(digits_network), context)
    seen = torch.cat([batch for batch, _ in data])[:200]
    with torch.no_grad():
        other = (found(seen).argmax(1) != digits_network.eval()(seen).argmax(1)).double().mean()
    assert float(other) <= 0.02
    assert min(rates(record)) < 3


def test_a_bound_that_no_rate_meets_is_told(digits_network: nn.Module, digits_task: Task) -> None:
    step = AutoRateDistortion(loss=0.0, bits=0.2, examples=64)
    with pytest.raises(ModelError, match=r"within 0\.00%: 0\.2 bits a weight lose"):
        applied(step, digits_network, digits_task)


def test_it_ends_where_nothing_is_lost_at_the_least_bits(digits_task: Task) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(digits_task.example.shape[1:]), 10))
    nn.init.zeros_(constant[1].bias)
    with torch.no_grad():
        constant[1].bias[3] = 100.0
    _, record, lost = applied(AutoRateDistortion(examples=64), constant, digits_task)
    assert lost == 0
    assert min(rates(record)) == LEAST
