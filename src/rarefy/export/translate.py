# SPDX-License-Identifier: Apache-2.0
"""How rarefy's own operators are spelt in standard ONNX: as QuantizeLinear and DequantizeLinear."""

from collections.abc import Callable
from typing import Any

# The newest version that ONNX Runtime optimises rightly: from 21 on QuantizeLinear has an output type,
# and ONNX Runtime 1.31 then refuses signed activations around Slice (it converts the zero point alone).
OPSET = 20


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: from operator to the function that writes its nodes."""
    import torch

    import rarefy.forms.operators  # noqa: F401  (the import registers the operators)

    return {
        torch.ops.rarefy.dequantize.default: write_dequantize,
        torch.ops.rarefy.fake_quantize.default: write_fake_quantize,
    }


def write_dequantize(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    """DequantizeLinear straight on the stored codes, so that a runtime sees an int8 weight.

    The standard knows no zero point for 32-bit codes, the form of quantised biases; theirs is zero.
    """
    import onnx_ir
    from onnxscript import opset20 as op

    if codes.dtype == onnx_ir.DataType.INT32:
        return op.DequantizeLinear(codes, scale, **on_axis(axis))
    return op.DequantizeLinear(codes, scale, zero_point, **on_axis(axis))


def write_fake_quantize(x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int) -> Any:
    """QuantizeLinear and DequantizeLinear; before them a clamp if [low, high] is narrower than the type.

    The clamp stands before QuantizeLinear, in floats, because runtimes fuse only an unbroken
    QuantizeLinear - DequantizeLinear pair with the operators around it.
    """
    import onnx_ir
    from onnxscript import opset20 as op

    signed = zero_point.dtype == onnx_ir.DataType.INT8
    if scale.dtype != x.dtype:
        scale = op.CastLike(scale, x)
    if (low, high) != ((-128, 127) if signed else (0, 255)):
        place = on_channels(axis, len(x.shape))
        s = op.Reshape(scale, place)
        z = op.Reshape(op.CastLike(zero_point, x), place)
        lowest = op.Mul(op.Sub(op.CastLike(op.Constant(value_float=float(low)), x), z), s)
        highest = op.Mul(op.Sub(op.CastLike(op.Constant(value_float=float(high)), x), z), s)
        x = op.Min(op.Max(x, lowest), highest) if axis >= 0 else op.Clip(x, lowest, highest)
    codes = op.QuantizeLinear(x, scale, zero_point, **on_axis(axis))
    return op.DequantizeLinear(codes, scale, zero_point, **on_axis(axis))


def on_axis(axis: int) -> dict[str, int]:
    """The axis attribute; none for a single scale."""
    return {"axis": axis} if axis >= 0 else {}


def on_channels(axis: int, dimensions: int) -> Any:
    """The shape that lets one value per channel broadcast; the empty shape for a single one."""
    from onnxscript import opset20 as op

    if axis < 0:
        return op.Constant(value_ints=[])
    return op.Constant(value_ints=[-1 if i == axis else 1 for i in range(dimensions)])
