# SPDX-License-Identifier: Apache-2.0
"""How int8 operators of a QDQ file are written for LiteRT, images as (batch, height, width, channels)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.export.integer_steps import settings
from rarefy.export.litert_file import Scaled
from rarefy.export.litert_moves import (
    INNER,
    NONE,
    Unwritable,
    concat,
    cut,
    pad,
    padded,
    place,
    pool,
    reshape,
    same,
    transpose,
    window,
)
from rarefy.export.litert_target import Target


def clip_ends(clip: Any, constants: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Between which values a Relu or Clip leaves values."""
    if clip.op_type == "Relu":
        return 0.0, np.inf
    low, high = (
        float(constants[clip.input[i]]) if i < len(clip.input) and clip.input[i] else None
        for i in (1, 2)
    )
    return -np.inf if low is None else low, np.inf if high is None else high


def conv(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """CONV_2D or DEPTHWISE_CONV_2D; padding that neither has stands before them."""
    x, weight, groups = to.codes(node, 0), to.weight(node, 1), settings(node).get("group", 1)
    if weight.codes.ndim != 4:
        raise Unwritable("only convolutions of images are")
    sizes, channels = to.shape(x)[1:3], to.shape(x)[3]
    strides, dilations, around, padding = window(node, sizes, weight.codes.shape[2:])
    if padding == "VALID" and any(map(any, around)):
        x = padded(to, x, [NONE, *around, NONE])
    each = groups == channels and weight.codes.shape[1] == 1
    kernel = weight.codes.transpose((1, 2, 3, 0) if each else INNER)
    w = to.file.tensor(
        node.input[1], kernel.shape, "INT8", data=kernel,
        scaled=Scaled(weight.scale, 0, 3 if each else 0),
    )  # fmt: skip
    fields = {
        "padding": getattr(to.file.schema.Padding, padding), "strideH": strides[0],
        "strideW": strides[1], "dilationHFactor": dilations[0], "dilationWFactor": dilations[1],
        "fusedActivationFunction": activation,
    }  # fmt: skip
    code = "DEPTHWISE_CONV_2D" if each else "CONV_2D"
    if each:
        fields["depthMultiplier"] = weight.codes.shape[0] // channels
    bias = to.bias(node, 2, x, weight.scale, len(weight.codes))
    options = "DepthwiseConv2DOptions" if each else "Conv2DOptions"
    return to.file.operator(code, [x, w, bias], to.output(node, scaled), options, **fields)


def linear(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """FULLY_CONNECTED for Gemm and MatMul with a weight."""
    x, weight, how = to.codes(node, 0), to.weight(node, 1), settings(node)
    plain = how.get("alpha", 1.0) == how.get("beta", 1.0) == 1.0 and not how.get("transA")
    if not plain or weight.codes.ndim != 2 or len(to.shape(x)) == 4:
        raise Unwritable("only products of rows with a matrix are")
    W = weight.codes if how.get("transB") else weight.codes.T
    w = to.file.tensor(node.input[1], W.shape, "INT8", data=W, scaled=Scaled(weight.scale, 0, 0))
    bias = to.bias(node, 2, x, weight.scale, len(W))
    return to.file.operator(
        "FULLY_CONNECTED", [x, w, bias], to.output(node, scaled), "FullyConnectedOptions",
        fusedActivationFunction=activation, keepNumDims=len(to.shape(x)) > 2,
    )  # fmt: skip


def pairwise(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """ADD and MUL of two tensors of as many axes."""
    terms = [to.codes(node, i) for i in (0, 1)]
    if len({len(to.shape(term)) for term in terms}) > 1:
        raise Unwritable("its terms have different numbers of axes")
    name = node.op_type
    return to.file.operator(
        name.upper(), terms, to.output(node, scaled), f"{name}Options",
        fusedActivationFunction=activation,
    )  # fmt: skip


def mean(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """MEAN over axes; for GlobalAveragePool over the places of an image."""
    x, how = to.codes(node, 0), settings(node)
    rank = len(to.shape(x))
    if node.op_type == "GlobalAveragePool":
        axes, kept = list(range(2, rank)), True
    else:
        given = to.constants[node.input[1]] if len(node.input) > 1 else how["axes"]
        axes, kept = [int(a) % rank for a in given], bool(how.get("keepdims", 1))
    rest = rank - len(axes)
    if rank == 4 and not kept and rest == 3:
        raise Unwritable("images can't lose one axis")
    numbers = [place(a, rank) for a in axes]
    if rank == 4 and not kept and sorted(numbers) != [1, 2] and rest > 1:
        raise Unwritable("images lose height and width together")
    return to.file.operator(
        "MEAN",
        [x, to.file.constant(numbers)],
        to.output(node, scaled),
        "ReducerOptions",
        keepDims=kept,
    )


def leaky(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """LEAKY_RELU."""
    alpha = settings(node).get("alpha", 0.01)
    made = to.output(node, scaled)
    return to.file.operator(
        "LEAKY_RELU", [to.codes(node, 0)], made, "LeakyReluOptions", alpha=alpha
    )


WRITERS: dict[str, Callable[[Target, Any, Scaled, int], int]] = {
    "Conv": conv, "Gemm": linear, "MatMul": linear, "Add": pairwise, "Mul": pairwise,
    "Concat": concat, "MaxPool": pool, "AveragePool": pool, "ReduceMean": mean,
    "GlobalAveragePool": mean, "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape,
    "Unsqueeze": reshape, "Transpose": transpose, "Pad": pad, "Slice": cut, "LeakyRelu": leaky,
    "Relu": same, "Clip": same, "Identity": same,
}  # fmt: skip
MOVING = {
    "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Pad", "Slice", "Identity",
}  # fmt: skip
FUSING = {"Conv", "Gemm", "MatMul", "Add", "Mul"}  # operators that cut by themselves
