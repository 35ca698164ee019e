# SPDX-License-Identifier: Apache-2.0
"""Known architectures with random weights: the runtime computes what the quantised network computes."""

import copy

import pytest
import torch

from rarefy.export.lint import lint
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import check_parity
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model

ARCHITECTURES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_runtime_computes_what_the_network_computes(name: str) -> None:
    torch.manual_seed(0)
    model, x = load_model(f"torchvision:{name}"), torch.randn(8, 3, 48, 48)
    with torch.no_grad():
        model.train()(x)  # batch norms see data
    model.eval()
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    quantised = StaticInt8(range="mse", correct=False).apply(model, context)
    program = export_onnx(quantised, x[:1])
    parity = check_parity(quantised, OnnxRuntime(program), [x], tolerance=16 / 255)
    assert parity.passed, parity
    floats = [product for product in lint(program) if not product.integer]
    assert not floats
