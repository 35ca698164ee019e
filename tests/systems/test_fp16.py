# SPDX-License-Identifier: Apache-2.0
"""Row fp16: half the bytes, nearly the same answers, and an overflow that is named instead of stored."""

import copy

import pytest
import torch

import rarefy as rf
from rarefy.errors import ModelError
from rarefy.quantize.half_precision import HalfPrecision
from rarefy.step import Context


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_halved_and_logits_stay(digits_network, digits_task, precision):
    context = Context(digits_task, digits_network, torch.device("cpu"), 0, {})
    found = HalfPrecision(precision=precision).apply(copy.deepcopy(digits_network), context)
    x = digits_task.example
    before, after = digits_network(x), found(x)
    limit = 1e-2 if precision == "fp16" else 5e-2
    assert float((before - after).abs().max() / before.abs().max()) < limit
    stored = sum(t.numel() * t.element_size() for t in found.state_dict().values())
    full = sum(t.numel() * t.element_size() for t in digits_network.state_dict().values())
    assert stored * 2 == full


def test_the_file_is_half_and_runs(digits_network, digits_task):
    result = rf.compress(digits_network, digits_task, "fp16")
    first, last = (result.measurements[i] for i in (0, -1))
    assert last["bytes"]["onnx"] < 0.55 * first["bytes"]["onnx"]
    assert last["metric"]["value"] == pytest.approx(first["metric"]["value"], abs=0.01)


def test_a_planted_overflow_is_named(digits):
    model, task = digits
    with torch.no_grad():
        model.conv2.bias[3] = 1e5
    with pytest.raises(ModelError, match="conv2"):
        HalfPrecision().apply(model, Context(task, model, torch.device("cpu"), 0, {}))
