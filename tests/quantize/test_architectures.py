# SPDX-License-Identifier: Apache-2.0
"""Known architectures with random weights: the runtime computes what the quantised network computes."""

import copy

import pytest
import torch

from rarefy.export.lint import lint
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import check_parity
from rarefy.export.reference import IntegerReference
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model

ARCHITECTURES = (
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "resnet34",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)
# ONNX's reference evaluator, which computes what stays float, pools others in another size
REFERENCED = ("efficientnet_b0", "mnasnet0_5", "regnet_x_400mf", "shufflenet_v2_x0_5")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_runtime_computes_what_the_network_computes(name: str) -> None:
    torch.manual_seed(0)
    model, x = load_model(f"torchvision:{name}"), torch.randn(8, 3, 48, 48)
    with torch.no_grad():
        model.train()(x)  # batch norms see data
    model.eval()
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    quantised = StaticInt8(range="mse", correct=False, compensate=False).apply(model, context)
    program = export_onnx(quantised, x[:1])
    runtime = OnnxRuntime(program)
    assert check_parity(quantised, runtime, [x], tolerance=16 / 255).passed
    if name in REFERENCED:  # nearer than the network's own emulation in floats
        expected, found = IntegerReference(program)(x), runtime(x)
        step = float(expected.max() - expected.min()) / 255
        # floats between two codes may be rounded to either, and one code more moves an output
        error = (found - expected).abs()
        assert float(error.mean()) <= step / 10
        assert float((error <= step).float().mean()) >= 0.999
    assert not [product for product in lint(program) if not product.integer]
