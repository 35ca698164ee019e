# SPDX-License-Identifier: Apache-2.0
"""Runtimes against the integer reference: every integer operator within one step of the output's grid."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.export.onnx import export_onnx
from rarefy.export.overflow import could_saturate
from rarefy.export.parity import check_parity
from rarefy.export.reference import IntegerReference
from rarefy.export.runtimes import open_program
from rarefy.forms.activations import quantizers_of
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task


class Net(nn.Module):
    """A convolution, what a case does with it, and a linear head."""

    def __init__(self, how: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.c, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(8, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


CASES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "convolution": lambda net, x: net.fc(net.a(x).mean((2, 3))),
    "clip": lambda net, x: net.fc(F.relu6(net.a(x)).mean((2, 3))),
    "depthwise": lambda net, x: net.fc(F.relu(net.b(net.a(x))).mean((2, 3))),
    "padding": lambda net, x: net.fc(net.b(F.pad(net.a(x), (0, 1, 0, 1))).mean((2, 3))),
    "sum": lambda net, x: net.fc((net.a(x) + net.a(x).relu()).mean((2, 3))),
    "maximum": lambda net, x: net.fc(net.a(x).amax((2, 3)).relu()),
    "linear": lambda net, x: net.fc(net.a(x).flatten(2)[..., 0].relu()),
}


@lru_cache
def quantised(name: str, runtime: str, compensate: bool = True) -> tuple[nn.Module, Any, Tensor]:
    """The network, the file made of it, and inputs."""
    torch.manual_seed(0)
    model, x = Net(CASES[name]).eval(), torch.randn(16, 3, 9, 9)
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), runtime=runtime)
    model = StaticInt8(compensate=compensate).apply(model, context)
    return model, export_onnx(model, x[:1]), x


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_every_runtime_is_within_a_step_of_the_reference(name: str, runtime: str) -> None:
    model, program, x = quantised(name, runtime)
    reference = IntegerReference(program)
    expected, found = reference(x), open_program(program, runtime)(x)
    assert len(reference.integer) >= 2
    holder = quantizers_of(model)
    assert holder is not None
    # a code that falls the other way at the head's input moves an output by one step times its weight
    step = float(holder.quantizers[-1].scale) * float(model.fc.weight.abs().max())
    assert float((found - expected).abs().max()) <= 2.01 * step
    assert check_parity(model, reference, [x]).passed


@pytest.mark.parametrize(
    ("name", "compensate"), [*((name, True) for name in CASES), ("linear", False)]
)
def test_codes_of_onnxruntime_are_those_of_the_reference(name: str, compensate: bool) -> None:
    _, program, x = quantised(name, "onnxruntime", compensate)
    assert not could_saturate(program)
    names = [n.output[0] for n in program.graph.node if n.op_type == "QuantizeLinear"]
    runtime = open_program(program, "onnxruntime").probe(names)
    ours, theirs = IntegerReference(program).probe(names)(x)[1:], runtime(x)[1:]
    for mine, other in zip(ours, theirs, strict=True):
        difference = (mine.long() - other.long()).abs()
        if name == "sum":  # its kernel adds in floats, so halves fall either way
            assert int(difference.max()) <= 1
            assert float((difference > 0).float().mean()) <= 0.05
        else:
            assert int(difference.max()) == 0


def test_a_float_program_is_computed_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = Net(CASES["clip"]).eval(), torch.randn(2, 3, 9, 9)
    reference = IntegerReference(export_onnx(model, x))
    assert torch.allclose(reference(x), model(x), atol=1e-5)
    assert reference.integer == set()
