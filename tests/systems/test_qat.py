# SPDX-License-Identifier: Apache-2.0
"""Row qat: the gradient of the definition, integers that answer as the fake quantisers did, training pays."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import rarefy as rf
from rarefy.forms.operators import fake_quantize
from rarefy.measure.quality import evaluate
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.step import Context
from rarefy.task import Task


def test_the_gradient_is_one_inside_and_zero_outside() -> None:
    scale, zero_point = torch.tensor(0.1), torch.tensor(100, dtype=torch.uint8)
    edges = torch.tensor([-10.06, -10.0, -3.0, 0.0, 15.5, 15.56])  # codes 0 to 255: -10 to 15.5
    x = edges.clone().requires_grad_()
    fake_quantize(x, scale, zero_point, -1, 0, 255).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_the_recipe_keeps_the_accuracy_and_the_runtime_answers_alike(
    digits_network: nn.Module, digits_task: Task
) -> None:
    result = rf.compress(digits_network, digits_task, "qat")
    before, after = (
        m["metric"]["value"] for m in (result.measurements[0], result.measurements[-1])
    )
    assert after >= before - 0.01
    assert result.measurements[-1]["metric"]["through"] == "onnxruntime"
    assert result.document["parity"]["passed"]
    inside = evaluate(result.model, digits_task).value
    assert abs(inside - after) <= 1 / 300 + 1e-9
    first, last = result.measurements[0], result.measurements[-1]
    assert last["bytes"]["rfy"] <= 0.3 * first["bytes"]["rfy"]


@pytest.mark.parametrize("method", ["straight-through", "learned-step"])
def test_training_beats_calibration_alone_at_two_bits(
    method: str, digits_network: nn.Module, digits_task: Task
) -> None:
    task = replace(digits_task, validation=None)
    found = []
    for epochs in (0, 4):
        step = QuantizationAwareTraining(
            bits=2,
            activation_bits=2,
            epochs=epochs,
            method=method,
            rate=0.02,  # type: ignore[arg-type]
        )
        context = Context(task, digits_network, torch.device("cpu"))
        found.append(evaluate(step.apply(copy.deepcopy(digits_network), context), task).value)
    assert found[1] >= found[0] + 0.02
