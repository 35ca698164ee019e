# SPDX-License-Identifier: Apache-2.0
"""How the operators of a quantised ONNX file are computed in integers, and the rest in floats."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rarefy.forms.grid import along
from rarefy.forms.integer import integer_add, integer_conv, integer_product, requantise

HIGHEST = float("inf")


@dataclass(frozen=True)
class Coded:
    """Values as codes: scale * (codes - zero).

    Attributes:
        codes: int64.
        scale: () or (channels,) float64.
        zero: () or (channels,) int64.
        axis: of the channels.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    axis: int = 0

    def real(self) -> Tensor:
        """The values, float32."""
        z, s = (along(t, self.axis, self.codes.dim()) for t in (self.zero, self.scale))
        return ((self.codes - z).double() * s).float()

    def whole(self) -> bool:
        """Whether one scale serves all."""
        return self.scale.numel() == 1

    def triple(self) -> tuple[Tensor, float, int]:
        """Codes, scale and zero point of a tensor with one scale."""
        return self.codes, float(self.scale), int(self.zero)


@dataclass(frozen=True)
class Pending:
    """A result not yet rounded: its 32-bit sums, or two terms that are still to be added.

    Attributes:
        give: from scale, zero point, lowest and highest code to codes.
        exact: the values in float32, for what reads them unrounded.
        low, high: values at which a clip cuts.
    """

    give: Callable[[float, int, int, int], Tensor]
    exact: Callable[[], Tensor]
    low: float = -HIGHEST
    high: float = HIGHEST

    def real(self) -> Tensor:
        """The values, float32."""
        return self.exact().clamp(self.low, self.high)

    def codes(self, scale: float, zero: int, lowest: int, highest: int) -> Tensor:
        """Codes on a grid; a clip cuts at the codes nearest to its ends."""
        if self.low > -HIGHEST:
            lowest = max(lowest, round(self.low / scale) + zero)
        if self.high < HIGHEST:
            highest = min(highest, round(self.high / scale) + zero)
        return self.give(scale, zero, lowest, highest)


def real(value: Any) -> Tensor:
    """A value as a tensor."""
    return value.real() if isinstance(value, (Coded, Pending)) else value


def settings(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def quantize(node: Any, given: list[Any]) -> Tensor | None:
    """QuantizeLinear with one scale: codes as the file's own type would hold them."""
    x, scale, zero = given[0], given[1], given[2]
    if scale.numel() != 1 or zero is None:
        return None
    ends = torch.iinfo(zero.dtype)
    if isinstance(x, Pending):
        return x.codes(float(scale), int(zero), ends.min, ends.max)
    codes = torch.round(real(x) / scale) + zero
    return codes.clamp(ends.min, ends.max).long()


def dequantize(node: Any, given: list[Any]) -> Coded:
    """DequantizeLinear: values that still know their codes."""
    codes, scale = given[0].long(), given[1].double()
    zero = torch.zeros_like(scale).long() if len(given) < 3 or given[2] is None else given[2].long()
    axis = settings(node).get("axis", 1) % max(codes.dim(), 1)
    return Coded(codes, scale, zero, axis if scale.numel() > 1 else 0)


def summed(total: Tensor, factor: Tensor, axis: int) -> Pending:
    """32-bit sums and their scale, () or (channels,), as a result that is still to be rounded."""
    factor = factor.reshape(()) if factor.numel() == 1 else factor
    return Pending(
        lambda scale, zero, low, high: requantise(total, factor / scale, zero, low, high, axis),
        lambda: (total.double() * along(factor, axis, total.dim())).float(),
    )


def bias_codes(bias: Any, factor: Tensor) -> Tensor | None:
    """A bias in steps of `factor`; the codes that it has, or those that a runtime would give it."""
    if bias is None or isinstance(bias, Coded):
        return None if bias is None else bias.codes
    return torch.round(bias.double() / factor).long()


def conv(node: Any, given: list[Any]) -> Pending | None:
    """A convolution of codes."""
    x, w = given[0], given[1]
    if not (isinstance(x, Coded) and isinstance(w, Coded) and x.whole() and not w.zero.any()):
        return None
    spatial, how = x.codes.dim() - 2, settings(node)
    factor = w.scale.reshape(-1) * x.scale.reshape(())
    total = integer_conv(
        x.codes,
        int(x.zero),
        w.codes,
        bias_codes(given[2] if len(given) > 2 else None, factor),
        list(how.get("strides", [1] * spatial)),
        list(how.get("pads", [0] * 2 * spatial)),
        list(how.get("dilations", [1] * spatial)),
        how.get("group", 1),
    )
    return summed(total, factor, 1)


def product(node: Any, given: list[Any]) -> Pending | None:
    """Gemm or MatMul of codes."""
    x, w = given[0], given[1]
    how = settings(node)
    plain = how.get("alpha", 1.0) == how.get("beta", 1.0) == 1.0 and not how.get("transA")
    if not (isinstance(x, Coded) and isinstance(w, Coded) and x.whole() and plain):
        return None
    if w.zero.numel() > 1 and bool(w.zero.any()):
        return None
    codes = w.codes.mT if how.get("transB") else w.codes
    factor = w.scale.reshape(-1) * x.scale.reshape(())
    bias = bias_codes(given[2] if len(given) > 2 else None, factor)
    total = integer_product(x.codes, int(x.zero), codes, int(w.zero.reshape(-1)[0]), bias)
    return summed(total, factor, total.dim() - 1)


def add(node: Any, given: list[Any]) -> Pending | None:
    """A sum of two tensors of codes."""
    a, b = given
    if not all(isinstance(t, Coded) and t.whole() for t in (a, b)):
        return None
    return Pending(
        lambda scale, zero, low, high: integer_add(a.triple(), b.triple(), scale, zero, low, high),
        lambda: a.real() + b.real(),
    )


def clip(node: Any, given: list[Any]) -> Pending | None:
    """Relu or Clip of a result that is still to be rounded."""
    x = given[0]
    if not isinstance(x, Pending):
        return None
    ends = [float(end) if end is not None else None for end in (*given[1:], None, None)][:2]
    low = 0.0 if node.op_type == "Relu" or ends[0] is None else ends[0]
    low = -HIGHEST if node.op_type == "Clip" and ends[0] is None else low
    high = HIGHEST if ends[1] is None else ends[1]
    return replace(x, low=max(x.low, low), high=min(x.high, high))


STEPS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Conv": conv,
    "Gemm": product,
    "MatMul": product,
    "Add": add,
    "Relu": clip,
    "Clip": clip,
}


def in_floats(proto: Any, node: Any, given: list[Any]) -> list[Tensor]:
    """A node as ONNX's reference evaluator computes it."""
    from onnx import ModelProto, helper
    from onnx.reference import ReferenceEvaluator

    named = {
        name: real(value).numpy()
        for name, value in zip(node.input, given, strict=True)
        if name and value is not None
    }
    ends = [helper.make_empty_tensor_value_info(name) for name in named]
    results = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "one", ends, results)
    model: ModelProto = helper.make_model(graph, opset_imports=list(proto.opset_import))
    found = ReferenceEvaluator(model).run(None, named)
    return [torch.from_numpy(np.array(value)) for value in found]
