# SPDX-License-Identifier: Apache-2.0
"""The linter tells from a runtime's own graph what runs in integers, and why the rest does not."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.export.lint import lint, told
from rarefy.export.onnx import export_onnx
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task

RUNTIMES = ("onnxruntime", "openvino")


class Net(nn.Module):
    """Two convolutions, a sum, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mid, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.mid((x + self.body(x)).mean((2, 3))).relu())


def quantised(runtime: str, **settings: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 8, 8)
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), runtime=runtime)
    return StaticInt8(**settings).apply(model, context), x  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_quantised_network_multiplies_in_integers_throughout(runtime: str) -> None:
    model, x = quantised(runtime)
    found = lint(export_onnx(model, x[:1]), runtime)
    assert [product.layer for product in found] == ["stem", "body", "mid", "head"]
    assert all(product.integer and not product.reason and product.kernel for product in found)
    expected = f"{runtime} computes 4 of 4 convolutions and matrix products in int8"
    assert told(found, runtime) == [expected]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_left_in_float_are_listed_with_the_reason(runtime: str) -> None:
    model, x = quantised(runtime, exclude=("stem", "head"))
    found = {product.layer: product for product in lint(export_onnx(model, x[:1]), runtime)}
    assert [layer for layer, product in found.items() if product.integer] == ["body", "mid"]
    assert found["stem"].reason == "what it reads is float: it has no quantiser"
    assert "is float" in found["head"].reason
    lines = told(list(found.values()), runtime)
    assert lines[0].endswith("2 of 4 convolutions and matrix products in int8")
    assert any("'stem'" in line and "stayed float" in line for line in lines)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_network_has_no_integer_kernel(runtime: str) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(1, 3, 8, 8)
    found = lint(export_onnx(model, x), runtime)
    assert len(found) == 4
    assert not any(product.integer for product in found)
    assert all(product.reason for product in found)
    assert told(found, runtime) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("integer", [True, False])
def test_products_are_timed_where_inputs_are_given(runtime: str, integer: bool) -> None:
    model, x = quantised(runtime) if integer else (Net().eval(), torch.randn(1, 3, 8, 8))
    found = {p.layer: p for p in lint(export_onnx(model, x[:1]), runtime, 1, x[:1])}
    macs = {"stem": 64 * 8 * 27, "body": 64 * 8 * 72, "mid": 128, "head": 80}
    assert {layer: product.macs for layer, product in found.items()} == macs
    assert all(product.kernel for product in found.values())
    times = [product.microseconds for product in found.values()]
    assert all(time is not None and 0 <= time < 1e6 for time in times)
