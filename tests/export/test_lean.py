# SPDX-License-Identifier: Apache-2.0
"""What is left out of a file changes no bit of what any reader computes from it."""

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from rarefy.export import image_channels
from rarefy.export import lean as module
from rarefy.export.onnx import export_onnx
from rarefy.export.reference import IntegerReference
from rarefy.export.rules import tensorrt_faults
from rarefy.export.runtimes import open_program
from rarefy.quantize.int8_weights import held_in_half
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task

RUNTIMES = ("onnxruntime", "openvino", "reference")


class Net(nn.Module):
    """Convolutions with strides, groups and dilation, a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 64, 3, padding=1)
        self.b = nn.Conv2d(64, 64, 3, stride=2, groups=64)
        self.c = nn.Conv2d(64, 24, 3, dilation=2, padding=2)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(24, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x).relu()).relu())
        return self.fc(self.pool(x).mean((2, 3)))


def exported(runtime: str) -> tuple[onnx.ModelProto, Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 13, 13)
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), runtime=runtime)
    return export_onnx(StaticInt8(correct=False).apply(model, context), x[:1]), x


@pytest.fixture(scope="module")
def pair() -> tuple[onnx.ModelProto, onnx.ModelProto, Tensor]:
    """A file as it is written, the file with nothing left out, and inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_channels, "fill_image_channels", lambda graph: None)  # it adds nodes
        small, x = exported("onnxruntime")
        patch.setattr(module, "lean", lambda model: None)
        patch.setattr(module, "number_nodes", lambda graph: None)
        full, _ = exported("onnxruntime")
    return small, full, x


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_and_kernels_stay(pair: Any, runtime: str) -> None:
    small, full, x = pair
    onnx.checker.check_model(small, full_check=True)
    if runtime == "reference":
        assert torch.equal(IntegerReference(small)(x), IntegerReference(full)(x))
        return
    runners = [open_program(proto, runtime) for proto in (small, full)]
    assert torch.equal(*(runner(x) for runner in runners))
    assert runners[0].precision == "int8"
    if runtime == "onnxruntime":
        assert runners[0].node_counts() == runners[1].node_counts()


def test_scales_take_two_bytes_a_channel_and_biases_four(pair: Any) -> None:
    small, full, _ = pair
    arrays = {t.name: numpy_helper.to_array(t) for t in small.graph.initializer}
    channels = 64 + 64 + 24 + 20
    weights = sum(a.nbytes for a in arrays.values() if a.dtype == np.int8 and a.ndim > 1)
    scales = [a for n, a in arrays.items() if n.endswith("weight.scale")]
    assert {a.dtype for a in scales} == {np.dtype(np.float16)}
    assert sum(a.size for a in scales) == channels
    assert not any(n.startswith("bias") and n.endswith("scale") for n in arrays)
    numbers = sum(a.nbytes for a in arrays.values())
    # zero points of 64 channels are made of scales; each grid of activations has a scale and a zero point
    assert numbers <= weights + channels * (2 + 4) + (24 + 20) + 8 * (4 + 1) + 2 * 8
    assert small.ByteSize() - numbers < 0.75 * (full.ByteSize() - sum_of(full))
    assert [node.name for node in small.graph.node] == [
        f"n{i}" for i in range(len(small.graph.node))
    ]
    assert {
        a.name for n in small.graph.node if n.op_type == "QuantizeLinear" for a in n.attribute
    } == set()


def sum_of(proto: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)


def test_attributes_that_are_no_defaults_stay(pair: Any) -> None:
    small, _, _ = pair
    found = {}
    for node in small.graph.node:
        if node.op_type == "Conv":
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values.pop("kernel_shape", None)
            found[len(found)] = values
    assert found == {
        0: {"pads": [1, 1, 1, 1]},
        1: {"strides": [2, 2], "group": 64},
        2: {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    }


def test_a_last_convolution_in_floats_is_computed() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 18, 3)),
        torch.randn(2, 3, 8, 8),
    )
    task = Task("noise", x, calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    found = StaticInt8().apply(model.eval(), context)
    proto = export_onnx(found, x)
    with torch.no_grad():
        exact = found(x)
    answer = open_program(proto, "onnxruntime")(x)
    assert torch.allclose(answer, exact, atol=float(exact.abs().max()) / 100)


def test_a_file_for_tensorrt_keeps_constant_scales() -> None:
    proto, _ = exported("tensorrt")
    assert tensorrt_faults(proto) == []
    kinds = {t.data_type for t in proto.graph.initializer if t.name.endswith("weight.scale")}
    assert kinds == {TensorProto.FLOAT}
    assert not any(node.op_type in ("Cast", "Mul") for node in proto.graph.node)


def test_a_scale_grows_to_the_next_of_sixteen_bits() -> None:
    scale = torch.cat([torch.logspace(-4, 4, 500), torch.tensor([2.0**-10, 2.5e-7, 1e-9])])
    found = held_in_half(scale)
    assert torch.equal(found.half().float(), found)
    assert bool((found >= scale).all())
    normal = scale > 2.0**-14
    assert bool((found[normal] <= scale[normal] * (1 + 2.0**-10)).all())
    below = torch.from_numpy(np.nextafter(found.half().numpy(), np.float16(0))).float()
    assert bool((below < scale).all())  # none nearer


@pytest.mark.parametrize("scales", [[0.1, 7e4], [1e-6, 1e-9]])
def test_scales_beyond_sixteen_bits_stay(scales: list[float]) -> None:
    scale = torch.tensor(scales)
    assert torch.equal(held_in_half(scale), scale)
