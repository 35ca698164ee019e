# SPDX-License-Identifier: Apache-2.0
"""Parity holds for a true file and fails for a wrong one, with figures that can be checked by hand."""

import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rarefy.errors import TaskError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import (
    FLOAT,
    HALF,
    QUANTISED,
    check_parity,
    default_tolerance,
    is_quantised,
)
from rarefy.zoo.models import load_model


class Double(nn.Module):
    """y = 2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def multiplying(factor: float) -> ModelProto:
    """A program for y = factor * x on (batch, 3)."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    node = helper.make_node("Mul", ["factor", "x"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


BATCHES = [torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[-3.0, 1.0, 5.0], [0.0, 0.5, 1.0]])]


def test_a_true_program_passes_with_figures_of_zero() -> None:
    net = Double().train()
    parity = check_parity(net, multiplying(2.0), BATCHES)
    assert parity.passed
    assert (parity.max_absolute, parity.max_relative, parity.agreement) == (0.0, 0.0, 1.0)
    assert (parity.samples, parity.runtime, parity.tolerance) == (3, "onnxruntime", FLOAT)
    assert net.training


def test_figures_of_a_wrong_program_are_those_of_the_arithmetic() -> None:
    assert check_parity(Double(), multiplying(-2.0), BATCHES, tolerance=1.25).passed
    parity = check_parity(Double(), multiplying(-2.0), BATCHES, tolerance=1.24)
    assert not parity.passed
    assert parity.tolerance == 1.24
    assert parity.max_absolute == 20.0
    assert parity.max_relative == 20.0 / 16.0
    assert parity.agreement == 0.0


def test_parity_needs_inputs() -> None:
    with pytest.raises(TaskError, match="at least one batch"):
        check_parity(Double(), multiplying(2.0), [])


def test_the_default_tolerance_follows_the_arithmetic(
    small: nn.Module, quantised: nn.Module
) -> None:
    assert is_quantised(quantised)
    assert default_tolerance(quantised) == QUANTISED
    assert default_tolerance(Double()) == FLOAT
    assert default_tolerance(Double().half()) == HALF


def test_a_tampered_network_fails_and_its_layer_is_named() -> None:
    torch.manual_seed(0)
    model, x = load_model("zoo:lenet5"), torch.randn(8, 1, 28, 28)
    program = export_onnx(model, x[:1])
    assert check_parity(model, program, [x]).passed
    (bias,) = [t for t in program.graph.initializer if t.name == "conv2.bias"]
    array = numpy_helper.to_array(bias).copy()
    array[7] += 1.0
    bias.CopyFrom(numpy_helper.from_array(array, "conv2.bias"))
    parity = check_parity(model, program, [x[:2], x])
    assert not parity.passed
    assert parity.first_diverging_layer == "conv2"
    assert parity.max_relative > 10 * FLOAT


def test_a_tampered_quantised_network_fails_and_its_layer_is_named(quantised: nn.Module) -> None:
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    program = export_onnx(quantised, x[:1])
    true = check_parity(quantised, program, [x])
    assert true.passed
    assert true.tolerance == QUANTISED
    (codes,) = [t for t in program.graph.initializer if t.name == "conv2.weight"]
    array = -numpy_helper.to_array(codes)
    codes.CopyFrom(numpy_helper.from_array(array, "conv2.weight"))
    parity = check_parity(quantised, OnnxRuntime(program), [x])
    assert not parity.passed
    assert parity.first_diverging_layer == "conv2"
