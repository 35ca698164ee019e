# SPDX-License-Identifier: Apache-2.0
"""How rarefy's own operators are spelt in standard ONNX: as QuantizeLinear and DequantizeLinear."""

from collections.abc import Callable
from typing import Any

# The newest version that ONNX Runtime optimises rightly: from 21 on QuantizeLinear has an output type,
# and ONNX Runtime 1.31 then refuses signed activations around Slice (it converts the zero point alone).
OPSET = 20
# The first that has codes of 4 bits and scales in blocks; files with these quantise no activations.
BLOCKED_OPSET = 21


def opset_for(model: Any) -> int:
    """The version of the standard in which a network is written."""
    from rarefy.forms.groups import InGroups

    return BLOCKED_OPSET if any(isinstance(m, InGroups) for m in model.modules()) else OPSET


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: from operator to the function that writes its nodes."""
    import torch

    import rarefy.forms.groups
    import rarefy.forms.operators
    import rarefy.forms.recurrent  # noqa: F401  (the imports register the operators)

    return {
        torch.ops.rarefy.dequantize.default: write_dequantize,
        torch.ops.rarefy.fake_quantize.default: write_fake_quantize,
        torch.ops.rarefy.dynamic_quantize.default: write_dynamic_quantize,
        torch.ops.rarefy.dynamic_lstm.default: write_dynamic_lstm,
        torch.ops.rarefy.dequantize_groups.default: write_dequantize_groups,
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


def write_dequantize_groups(codes: Any, scale: Any, zero_point: Any, size: int, bits: int) -> Any:
    """DequantizeLinear in blocks of a row; codes of 4 bits are marked by a cast, see `grouped_codes`."""
    import onnx_ir
    from onnxscript import opset21 as op

    if bits == 4:
        kind = "INT4" if codes.dtype == onnx_ir.DataType.INT8 else "UINT4"
        codes, zero_point = (op.Cast(v, to=onnx_ir.DataType[kind]) for v in (codes, zero_point))
    return op.DequantizeLinear(codes, scale, zero_point, axis=1, block_size=size)


def write_dynamic_quantize(x: Any) -> Any:
    """DynamicQuantizeLinear and DequantizeLinear; `rarefy.export.integer_products` takes the latter away."""
    from onnxscript import opset20 as op

    return op.DequantizeLinear(*op.DynamicQuantizeLinear(x))


def write_dynamic_lstm(x: Any, h: Any, c: Any, codes: Any, scales: Any, biases: Any) -> Any:
    """ONNX Runtime's DynamicQuantizeLSTM; the standard has no operator that rounds the state.

    Gates are put from torch's order (input, forget, cell, output) into ONNX's (input, output, forget, cell),
    weights from (4 hidden, inputs) into (directions, inputs, 4 hidden). A runtime does so when it loads the
    file.
    """
    from onnxscript import opset20 as op

    from rarefy.export.contributed import dynamic_quantize_lstm

    first, hidden = op.Constant(value_ints=[0]), codes[1].shape[1]
    order = op.Constant(value_ints=[0, 3, 1, 2])

    def gates(value: Any) -> Any:
        four = op.Reshape(value, op.Constant(value_ints=[4, hidden, *value.shape[1:]]))
        return op.Reshape(op.Gather(four, order, axis=0), op.Constant(value_ints=[*value.shape]))

    def stacked(values: list[Any]) -> Any:
        return op.Concat(*(op.Unsqueeze(value, first) for value in values), axis=0)

    W, R = (stacked([op.Transpose(gates(v), perm=[1, 0]) for v in codes[i::2]]) for i in (0, 1))
    steps = [stacked([gates(v) for v in scales[i::2]]) for i in (0, 1)]
    zeros = [op.Cast(op.Sub(s, s), to=3) for s in steps]  # int8
    pairs = zip(biases[::2], biases[1::2], strict=True)
    B = stacked([op.Concat(gates(a), gates(b), axis=0) for a, b in pairs]) if biases else None
    y, last, cell = dynamic_quantize_lstm()(
        x, W, R, B, None, h, c, None, steps[0], zeros[0], steps[1], zeros[1],
        direction="bidirectional" if len(codes) > 2 else "forward", hidden_size=hidden,
    )  # fmt: skip
    turned = op.Transpose(y, perm=[0, 2, 1, 3])  # (T, directions, B, hidden) to (T, B, ...)
    return op.Reshape(turned, op.Constant(value_ints=[0, 0, -1])), last, cell


def on_axis(axis: int) -> dict[str, int]:
    """The axis attribute; none for a single scale."""
    return {"axis": axis} if axis >= 0 else {}


def on_channels(axis: int, dimensions: int) -> Any:
    """The shape that lets one value per channel broadcast; the empty shape for a single one."""
    from onnxscript import opset20 as op

    if axis < 0:
        return op.Constant(value_ints=[])
    return op.Constant(value_ints=[-1 if i == axis else 1 for i in range(dimensions)])
