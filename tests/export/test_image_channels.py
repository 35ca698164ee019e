# SPDX-License-Identifier: Apache-2.0
"""A fourth channel of zeros changes no bit of a result and stands only where an image is read."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from rarefy.export import image_channels as module
from rarefy.export.lint import lint
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.overflow import could_saturate
from rarefy.export.product_macs import macs_of
from rarefy.export.reference import IntegerReference
from rarefy.export.runner import Runner
from rarefy.export.runtimes import open_program
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task

X = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution of `channels` in `groups` and a linear layer."""

    def __init__(self, channels: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 32, 3, stride=2, groups=groups)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).relu().mean((2, 3)))


def quantised(model: nn.Module, x: Tensor, **settings: Any) -> nn.Module:
    task = Task("images", x[:2], calibration=[x], labelled=False)
    step = StaticInt8(examples=len(x), **settings)
    return step.apply(model.eval(), Context(task, model, torch.device("cpu")))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return quantised(Net(), X)


def opened(proto: onnx.ModelProto, runtime: str) -> Runner:
    return IntegerReference(proto) if runtime == "reference" else open_program(proto, runtime)


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "reference"])
def test_results_are_the_same_to_the_bit(
    network: nn.Module, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = export_onnx(network, X[:1])
    monkeypatch.setattr(module, "fill_image_channels", lambda graph: None)
    plain = export_onnx(network, X[:1])
    assert (kinds(filled).count("Pad"), kinds(plain).count("Pad")) == (2, 0)
    results = [opened(proto, runtime)(X) for proto in (filled, plain)]
    assert torch.equal(*results)
    assert 0 < filled.ByteSize() - plain.ByteSize() < 300
    monkeypatch.undo()
    assert kinds(export_onnx(network, X[:1], runtime="openvino")) == kinds(plain)


def test_the_kernel_reads_four_channels_and_the_file_holds_three(network: nn.Module) -> None:
    proto = export_onnx(network, X[:1])
    onnx.checker.check_model(proto, full_check=True)
    held = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    assert held["stem.weight"] == (32, 3, 3, 3)
    counts = OnnxRuntime(proto).node_counts()
    assert counts["QLinearConv"] == 1
    assert counts["Pad"] == 1, "the weight was filled when the file was loaded"


def test_the_layer_keeps_its_name_and_its_products(network: nn.Module) -> None:
    proto = export_onnx(network, X[:1])
    layers = {product.layer: product for product in lint(proto)}
    assert set(layers) == {"stem", "fc"}
    assert all(product.integer for product in layers.values())
    (conv,) = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert macs_of(proto, {"stem": conv}, X[:1]) == {"stem": 5 * 5 * 32 * 27}


def test_weights_that_could_overflow_are_still_found(network: nn.Module) -> None:
    proto = export_onnx(network, X[:1])
    assert not could_saturate(proto)
    for tensor in proto.graph.initializer:
        if tensor.name == "stem.weight":
            high = np.full(tuple(tensor.dims), 127, np.int8)
            tensor.CopyFrom(numpy_helper.from_array(high, tensor.name))
    assert could_saturate(proto)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (4, 1), (6, 2), (3, 1)])
def test_only_whole_images_are_filled(channels: int, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, channels, 12, 12)
    found = kinds(export_onnx(quantised(Net(channels, groups), x), x[:1])).count("Pad")
    assert found == (2 if (channels, groups) == (3, 1) else 0)


def test_signed_codes_are_left_alone() -> None:
    proto = export_onnx(quantised(Net(), X, runtime="tensorrt"), X[:1])
    assert "Pad" not in kinds(proto)


def test_two_readers_of_one_image_agree() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), self.two(x)], 1)

    torch.manual_seed(0)
    proto = export_onnx(quantised(Two(), X), X[:1])
    want = IntegerReference(proto)(X)
    step = float((want.max() - want.min()) / 255)
    assert float((OnnxRuntime(proto)(X) - want).abs().max()) <= 1.01 * step
