# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that compute values, as functions on tensors; each takes its attributes, then its inputs."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.zoo.onnx_shapes import SHAPES, Attributes, Operator, axes_of
from rarefy.zoo.onnx_sizes import is_size, sizes_of, tensor_of

NO_MATTER = {"SAME_UPPER", "SAME_LOWER"}


def of_one(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one tensor without attributes."""
    return lambda how, x: function(tensor_of(x))


def of_several(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two or more tensors without attributes."""
    return lambda how, *values: reduce(function, [tensor_of(v) for v in values])


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Div; integers are cut off."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def cast(how: Attributes, x: Any) -> Any:
    """Cast; float16 and float64 become float32, in which the network computes."""
    kind = how["to"]
    if is_size(x) and not kind.is_floating_point:
        return x
    return tensor_of(x).to(kind)


def clip(how: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clip."""
    ends = [float(v) if v is not None else how.get(n) for v, n in ((low, "min"), (high, "max"))]
    if ends == [0.0, 6.0]:
        return F.relu6(x)
    return torch.clamp(x, ends[0], ends[1])


def hard_sigmoid(how: Attributes, x: Tensor) -> Tensor:
    """HardSigmoid; with a slope of 1/6 it is PyTorch's own."""
    alpha, beta = how.get("alpha", 0.2), how.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


def reduced(
    function: Callable[..., Tensor], how: Attributes, x: Tensor, axes: Any = None
) -> Tensor:
    """A reduction over some axes, or all."""
    x = tensor_of(x)
    found = axes_of(how, axes)
    if not found and how.get("noop_with_empty_axes"):
        return x
    where = tuple(a % x.dim() for a in found) if found else tuple(range(x.dim()))
    return function(x, where, bool(how.get("keepdims", 1)))


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """The product over axes."""
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def windows(how: Attributes, x: Tensor) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, begins and ends of the padding of a pooling or convolution.

    Padding that depends on the input's size is worked out from it.
    """
    kernel = list(how["kernel_shape"])
    n = len(kernel)
    stride, dilation = list(how.get("strides", [1] * n)), list(how.get("dilations", [1] * n))
    pads = list(how.get("pads", [0] * 2 * n))
    if how.get("auto_pad") in NO_MATTER:
        needs = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
        ]
        upper = how["auto_pad"] == "SAME_UPPER"
        begins = [need // 2 if upper else need - need // 2 for need in needs]
        return kernel, stride, begins, [a - b for a, b in zip(needs, begins, strict=True)]
    return kernel, stride, pads[:n], pads[n:]


def around(begins: list[int], ends: list[int]) -> list[int]:
    """Padding as torch's `pad` wants it: last axis first."""
    return [p for pair in reversed(list(zip(begins, ends, strict=True))) for p in pair]


def max_pool(how: Attributes, x: Tensor) -> Tensor:
    """MaxPool."""
    kernel, stride, begins, ends = windows(how, x)
    dilation = list(how.get("dilations", [1] * len(kernel)))
    if begins != ends or any(2 * b > k for b, k in zip(begins, kernel, strict=True)):
        x, begins = F.pad(x, around(begins, ends), value=float("-inf")), [0] * len(kernel)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return run(x, kernel, stride, begins, dilation, bool(how.get("ceil_mode", 0)))


def average_pool(how: Attributes, x: Tensor) -> Tensor:
    """AveragePool."""
    kernel, stride, begins, ends = windows(how, x)
    counts = bool(how.get("count_include_pad", 0))
    run: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(how.get("ceil_mode", 0))
    if begins == ends:
        return run(x, kernel, stride, begins, ceil, counts)
    padded = run(F.pad(x, around(begins, ends)), kernel, stride, 0, ceil)
    if counts:
        return padded
    share = run(F.pad(torch.ones_like(x), around(begins, ends)), kernel, stride, 0, ceil)
    return padded / share


def global_pool(run: Any, how: Attributes, x: Tensor) -> Tensor:
    """A pooling over all places."""
    return run[x.dim() - 3](x, 1)


def resize(
    how: Attributes, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None
) -> Tensor:
    """Resize of the places of an image."""
    mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[
        how.get("mode", "nearest")
    ]
    place = how.get("coordinate_transformation_mode", "half_pixel")
    settings: dict[str, Any] = {}
    if mode != "nearest":
        settings["align_corners"] = place == "align_corners"
    if sizes is not None:
        return F.interpolate(x, size=list(sizes_of(sizes)[2:]), mode=mode, **settings)
    factors = [float(v) for v in sizes_of(scales)[2:]]
    return F.interpolate(x, scale_factor=factors, mode=mode, **settings)


def norm_of_layer(how: Attributes, x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """LayerNormalization whose weight is computed."""
    axis = how.get("axis", -1) % x.dim()
    return F.layer_norm(x, x.shape[axis:], weight, bias, how.get("epsilon", 1e-5))


def gemm(how: Attributes, a: Tensor, b: Tensor, c: Any = None) -> Tensor:
    """Gemm or MatMul whose matrices are both computed."""
    a, b = (x.mT if how.get(n) else x for x, n in ((a, "transA"), (b, "transB")))
    alpha, beta = how.get("alpha", 1.0), how.get("beta", 1.0)
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return y if c is None else y + (c if beta == 1 else beta * c)


OPERATORS: dict[str, Operator] = {
    **SHAPES,
    "Identity": lambda how, x: x,
    "Dropout": lambda how, x, *rest: x,
    "Cast": cast,
    "CastLike": lambda how, x, like: tensor_of(x).to(tensor_of(like).dtype),
    "Add": of_several(torch.add),
    "Sub": of_several(torch.sub),
    "Mul": of_several(torch.mul),
    "Div": of_several(divide),
    "Pow": of_several(torch.pow),
    "Mod": of_several(torch.remainder),
    "Sum": of_several(torch.add),
    "Mean": lambda how, *v: reduce(torch.add, v) / len(v),
    "Max": of_several(torch.maximum),
    "Min": of_several(torch.minimum),
    "MatMul": gemm,  # it may have got a bias
    "Gemm": gemm,
    "Equal": of_several(torch.eq),
    "Greater": of_several(torch.gt),
    "GreaterOrEqual": of_several(torch.ge),
    "Less": of_several(torch.lt),
    "LessOrEqual": of_several(torch.le),
    "And": of_several(torch.logical_and),
    "Or": of_several(torch.logical_or),
    "Not": of_one(torch.logical_not),
    "IsNaN": of_one(torch.isnan),
    "Neg": of_one(torch.neg),
    "Abs": of_one(torch.abs),
    "Sqrt": of_one(torch.sqrt),
    "Reciprocal": of_one(torch.reciprocal),
    "Exp": of_one(torch.exp),
    "Log": of_one(torch.log),
    "Erf": of_one(torch.erf),
    "Sin": of_one(torch.sin),
    "Cos": of_one(torch.cos),
    "Floor": of_one(torch.floor),
    "Ceil": of_one(torch.ceil),
    "Round": of_one(torch.round),
    "Sign": of_one(torch.sign),
    "Relu": of_one(F.relu),
    "Tanh": of_one(torch.tanh),
    "Sigmoid": of_one(torch.sigmoid),
    "Softplus": of_one(F.softplus),
    "Softsign": of_one(F.softsign),
    "HardSwish": of_one(F.hardswish),
    "Mish": of_one(F.mish),
    "Gelu": lambda how, x: F.gelu(x, approximate=how.get("approximate", "none")),
    "LeakyRelu": lambda how, x: F.leaky_relu(x, how.get("alpha", 0.01)),
    "Elu": lambda how, x: F.elu(x, how.get("alpha", 1.0)),
    "Celu": lambda how, x: F.celu(x, how.get("alpha", 1.0)),
    "Selu": of_one(F.selu),
    "PRelu": lambda how, x, slope: torch.where(x < 0, x * slope, x),
    "HardSigmoid": lambda how, x: torch.clamp(
        how.get("alpha", 0.2) * x + how.get("beta", 0.5), 0, 1
    ),
    "Clip": clip,
    "Softmax": lambda how, x: F.softmax(x, how.get("axis", -1)),
    "LogSoftmax": lambda how, x: F.log_softmax(x, how.get("axis", -1)),
    "ReduceMean": partial(reduced, torch.mean),
    "ReduceSum": partial(reduced, torch.sum),
    "ReduceMax": partial(reduced, torch.amax),
    "ReduceMin": partial(reduced, torch.amin),
    "ReduceProd": partial(reduced, product),
    "ReduceL1": partial(reduced, lambda x, a, k: x.abs().sum(a, k)),
    "ReduceL2": partial(reduced, lambda x, a, k: x.square().sum(a, k).sqrt()),
    "ArgMax": lambda how, x: x.argmax(how.get("axis", 0), bool(how.get("keepdims", 1))),
    "CumSum": lambda how, x, axis: x.cumsum(int(sizes_of(axis)[0])),
    "Einsum": lambda how, *values: torch.einsum(how["equation"], *values),
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": partial(
        global_pool, (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    ),
    "GlobalMaxPool": partial(
        global_pool, (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    ),
    "Resize": resize,
    "LayerNormalization": norm_of_layer,
}
