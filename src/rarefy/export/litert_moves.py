# SPDX-License-Identifier: Apache-2.0
"""How operators that move codes, or choose among them, are written for LiteRT; all keep their scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rarefy.export.integer_steps import settings
from rarefy.export.litert_file import Scaled
from rarefy.export.litert_target import Target

INNER = (0, 2, 3, 1)  # NCHW to NHWC
OUTER = (0, 3, 1, 2)  # and back
NONE = (0, 0)  # values around an axis


class Unwritable(Exception):
    """An operator that can't be written; says why."""


def stored(shape: Sequence[int]) -> list[int]:
    """A shape as the file has it: channels of images last."""
    return [shape[i] for i in INNER] if len(shape) == 4 else list(shape)


def window(node: Any, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[Any, Any, Any, str]:
    """Strides, dilations, and the padding before and after each axis, ``"SAME"`` where LiteRT's is that."""
    how = settings(node)
    strides, dilations = how.get("strides", [1, 1]), how.get("dilations", [1, 1])
    pads = list(how.get("pads", [0, 0, 0, 0]))
    if how.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unwritable("it pads automatically")
    around = [(pads[i], pads[i + 2]) for i in (0, 1)]
    if not any(pads):
        return strides, dilations, around, "VALID"
    same = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        same.append((total // 2, total - total // 2))
    return strides, dilations, around, "SAME" if same == around else "VALID"


def place(axis: int, rank: int) -> int:
    """Where an axis of the network is in the file."""
    return INNER.index(axis % rank) if rank == 4 else axis % rank


def padded(to: Target, x: int, around: Sequence[tuple[int, int]], lowest: bool = False) -> int:
    """Codes with zeros around them, or with the lowest value that there is.

    Args:
        to: the file.
        x: number of a tensor.
        around: how many before and after each of its axes.
        lowest: whether it is the lowest.
    """
    shape = [n + sum(p) for n, p in zip(to.shape(x), around, strict=True)]
    widths, scaled = to.file.constant(list(around)), to.scaled(x)
    found = to.result("padded", shape, scaled)
    if not lowest:
        return to.file.operator("PAD", [x, widths], found, "PadOptions")
    value = to.file.tensor("lowest", [], "INT8", data=np.array(-128, np.int8), scaled=scaled)
    return to.file.operator("PADV2", [x, widths, value], found, "PadV2Options")


def pool(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """MAX_POOL_2D and AVERAGE_POOL_2D, which keep the scale of what they read."""
    x, how, largest = to.codes(node, 0), settings(node), node.op_type == "MaxPool"
    kernel = how["kernel_shape"]
    strides, dilations, around, padding = window(node, to.shape(x)[1:3], kernel)
    if len(kernel) != 2 or set(dilations) != {1} or how.get("ceil_mode"):
        raise Unwritable("only plain pools of images are")
    if (
        not largest
        and any(map(any, around))
        and (padding != "SAME" or how.get("count_include_pad"))
    ):
        raise Unwritable("its means count the padding")
    if padding == "VALID" and any(map(any, around)):
        x = padded(to, x, [NONE, *around, NONE], lowest=True)
    made = to.output(node, to.scaled(x))
    found = to.file.operator(
        "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D", [x], made, "Pool2DOptions",
        padding=getattr(to.file.schema.Padding, padding), strideH=strides[0], strideW=strides[1],
        filterHeight=kernel[0], filterWidth=kernel[1],
    )  # fmt: skip
    return to.rescaled(found, scaled)


def concat(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """CONCATENATION; what has another scale is brought to the result's first."""
    parts = [to.rescaled(to.codes(node, i), scaled) for i in range(len(node.input))]
    rank = len(to.shape(parts[0]))
    return to.file.operator(
        "CONCATENATION", parts, to.output(node, scaled), "ConcatenationOptions",
        axis=place(settings(node)["axis"], rank),
    )  # fmt: skip


def reshape(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """RESHAPE, with TRANSPOSE around it where an image's channels are not last but for the file."""
    x, shape = to.codes(node, 0), to.sizes(node.output[0])
    before, own = to.shape(x), to.scaled(x)
    if len(before) == 4 and before[1] * before[2] > 1:
        x = transposed(to, x, OUTER)
    moved = len(shape) == 4 and shape[2] * shape[3] > 1
    sizes = shape if moved else stored(shape)
    wanted = to.file.constant([-1, *sizes[1:]] if before[0] == sizes[0] else sizes)
    made = to.result(node.output[0], sizes, own)
    x = to.file.operator("RESHAPE", [x, wanted], made, "ReshapeOptions")
    return to.rescaled(transposed(to, x, INNER) if moved else x, scaled)


def transposed(to: Target, x: int, order: Sequence[int]) -> int:
    """Axes in another order."""
    shape = [to.shape(x)[i] for i in order]
    made = to.result("transposed", shape, to.scaled(x))
    return to.file.operator("TRANSPOSE", [x, to.file.constant(order)], made, "TransposeOptions")


def transpose(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """TRANSPOSE, the order told for channels that are last."""
    x, order = to.codes(node, 0), list(settings(node)["perm"])
    if len(order) == 4:
        order = [INNER.index(order[i]) for i in INNER]
    return to.rescaled(transposed(to, x, order), scaled)


def pad(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """PAD with zeros."""
    x = to.codes(node, 0)
    rank, widths = len(to.shape(x)), to.constants[node.input[1]]
    value = to.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(())
    plain = settings(node).get("mode", b"constant") == b"constant" and not np.any(value)
    if not plain or len(widths) != 2 * rank or (widths < 0).any() or widths[[0, rank]].any():
        raise Unwritable("only zeros around examples are")
    around = [NONE] * rank
    for axis in range(rank):
        around[place(axis, rank)] = int(widths[axis]), int(widths[axis + rank])
    return to.rescaled(padded(to, x, around), scaled)


def cut(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """STRIDED_SLICE."""
    x = to.codes(node, 0)
    shape = to.shape(x)
    given = [to.constants[name].tolist() for name in node.input[1:]]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else list(range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(starts)
    if min(steps) < 1:
        raise Unwritable("it goes backwards")
    corners, whole = [[0] * len(shape), list(shape), [1] * len(shape)], (1 << len(shape)) - 1
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where = place(axis, len(shape))
        first, last, _ = slice(start, end, step).indices(shape[where])
        for corner, number in zip(corners, (first, last, step), strict=True):
            corner[where] = number
        whole &= ~(1 << where)  # the others stay, whatever the batch
    found = to.file.operator(
        "STRIDED_SLICE", [x, *(to.file.constant(corner) for corner in corners)],
        to.output(node, to.scaled(x)), "StridedSliceOptions", beginMask=whole, endMask=whole,
    )  # fmt: skip
    return to.rescaled(found, scaled)


def same(to: Target, node: Any, scaled: Scaled, activation: int) -> int:
    """Relu, Clip and Identity by themselves: the ends of the result's codes cut."""
    return to.rescaled(to.codes(node, 0), scaled)
