# SPDX-License-Identifier: Apache-2.0
"""The fastest products of a runtime, each in the arithmetic that it is asked for."""

import pytest
import torch

from rarefy.export.ceiling import ceilings, single
from rarefy.export.lint import lint
from rarefy.export.reference import IntegerReference


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_both_arithmetics_are_timed(runtime: str) -> None:
    found = ceilings(runtime, 1)
    assert set(found) == {"int8", "float32"}
    assert all(0.01 < speed < 1e6 for speed in found.values())
    assert ceilings(runtime, 1) is found  # once a process


@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
@pytest.mark.parametrize("integer", [True, False])
def test_the_operator_is_the_one_that_is_wanted(operator: str, integer: bool) -> None:
    program, shape = single(operator, 64, integer)
    x = torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)
    (found,) = lint(program, "onnxruntime", 1, x)
    assert found.integer == integer
    pixels = shape[0] if operator == "MatMul" else 32 * 32
    assert found.macs == pixels * 64 * 64
    assert found.microseconds is not None
    assert found.microseconds > 0


def test_integers_are_what_the_reference_computes() -> None:
    program, shape = single("MatMul", 64, integer=True)
    x = torch.linspace(-1, 1, 64 * 64).reshape(shape)
    codes = torch.clamp(torch.round(x * 64), -128, 127)
    weight = torch.tensor([i * 7919 % 127 - 63 for i in range(64 * 64)]).reshape(64, 64)
    exact = codes.double() @ weight.double() / 64 / 64
    expected = torch.clamp(torch.round(exact * 64), -128, 127) / 64
    assert torch.allclose(IntegerReference(program)(x).double(), expected, atol=1 / 64)
