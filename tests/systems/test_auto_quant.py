# SPDX-License-Identifier: Apache-2.0
"""Row auto-quant: one call; layers go back to float until the loss is within bounds, the same ones again."""

import copy

import pytest
import torch

import rarefy as rf
from rarefy.errors import ModelError
from rarefy.measure.quality import evaluate
from rarefy.quantize.auto_int8 import AutoInt8
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import load_recipe
from rarefy.step import Context


@pytest.fixture(scope="module")
def fragile(digits_network):
    """The same function, but one channel of the first layer's results dwarfs the others."""
    model = copy.deepcopy(digits_network)
    with torch.no_grad():
        model.conv1.weight[3] *= 3000
        model.conv1.bias[3] *= 3000
        model.conv2.weight[:, 3] /= 3000
    return model


def quantised(step, model, task):
    context = Context(task, model, torch.device("cpu"))
    return step.apply(copy.deepcopy(model), context), context.record


def test_a_sound_network_keeps_no_layer_in_float(digits_network, digits_task):
    result = rf.compress(digits_network, digits_task, "auto-quant")
    assert result.document["notes"][0].startswith("0 layers went back to float")
    assert all(kernel["integer"] for kernel in result.document["kernels"])
    first, last = result.measurements[0], result.measurements[-1]
    assert last["metric"]["value"] >= first["metric"]["value"] - 0.01


def test_fragile_layers_go_back_until_the_loss_is_within_bounds(fragile, digits_task):
    before = evaluate(fragile, digits_task, "validation").value
    plain, _ = quantised(StaticInt8(range="minmax", correct=False), fragile, digits_task)
    assert evaluate(plain, digits_task, "validation").value < before - 0.05
    step = AutoInt8(loss=0.01, range="minmax", correct=False)
    found, record = quantised(step, fragile, digits_task)
    assert evaluate(found, digits_task, "validation").value >= before - 0.01
    assert record["damage"][0]["site"] == "conv2:conv2d#0"
    assert record["damage"][0]["output_error"] > record["damage"][-1]["output_error"]
    assert not any(call.startswith("conv1") for call in record["integer_calls"])
    assert any(call.startswith("fc1") for call in record["integer_calls"])
    again, same = quantised(step, fragile, digits_task)
    assert same["notes"] == record["notes"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_what_cannot_be_kept_is_told(fragile, digits_task):
    step = AutoInt8(loss=0.0, bits=2, range="minmax", weight_range="minmax")
    with pytest.raises(ModelError, match=r"auto-int8 can't keep the loss within 0\.00%"):
        quantised(step, fragile, digits_task)


def test_the_recipe_names_the_bound():
    (step,) = load_recipe("auto-quant").steps
    assert step == AutoInt8(loss=0.01)
