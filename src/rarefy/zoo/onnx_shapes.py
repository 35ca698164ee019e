# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that move values about or compute with sizes, as functions on tensors."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.zoo.onnx_sizes import MOST, is_size, matrix_of, sizes_of, tensor_of

Attributes: TypeAlias = Mapping[str, Any]
Operator: TypeAlias = Callable[..., Any]


def axes_of(how: Attributes, given: Any, default: Any = None) -> Any:
    """Axes as an attribute (older files) or as an input."""
    if given is not None:
        return sizes_of(given)
    return tuple(how["axes"]) if "axes" in how else default


def shape(how: Attributes, x: Any) -> Any:
    """Shape."""
    found = x.shape if isinstance(x, Tensor) else (len(x),) if isinstance(x, tuple) else ()
    return tuple(found)[how.get("start", 0) : how.get("end")]


def reshape(how: Attributes, x: Any, sizes: Any) -> Any:
    """Reshape; a 0 copies a size."""
    wanted = sizes_of(sizes)
    if is_size(x):
        found = sizes_of(x)
        return matrix_of(found, wanted) if len(wanted) > 1 else found if wanted else found[0]
    zero = how.get("allowzero", 0)
    return x.reshape([x.shape[i] if not n and not zero else n for i, n in enumerate(wanted)])


def flatten(how: Attributes, x: Tensor) -> Tensor:
    """Flatten to two axes."""
    axis = how.get("axis", 1) % (x.dim() + 1)
    if axis == 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(how: Attributes, x: Any) -> Any:
    """Transpose."""
    order = list(how.get("perm", range(x.ndim - 1, -1, -1)))
    return x.transpose(order) if is_size(x) else x.permute(order)


def squeeze(how: Attributes, x: Any, axes: Any = None) -> Any:
    """Squeeze."""
    if is_size(x):
        return sizes_of(x)[0]
    found = axes_of(how, axes, tuple(i for i, n in enumerate(x.shape) if n == 1))
    return x.squeeze(tuple(a % x.dim() for a in found))


def unsqueeze(how: Attributes, x: Any, axes: Any = None) -> Any:
    """Unsqueeze."""
    found = axes_of(how, axes)
    if is_size(x) and not isinstance(x, tuple):
        return (x,)
    x = tensor_of(x)
    for axis in sorted(a % (x.dim() + len(found)) for a in found):
        x = x.unsqueeze(axis)
    return x


def concat(how: Attributes, *parts: Any) -> Any:
    """Concat."""
    if all(is_size(part) for part in parts):
        return tuple(n for part in parts for n in sizes_of(part))
    return torch.cat([tensor_of(part) for part in parts], how["axis"])


def split(how: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    """Split into given sizes, or evenly into as many as there are results."""
    axis = how.get("axis", 0)
    if sizes is None and "split" not in how:
        return x.chunk(how.get("num_outputs", how["results"]), axis)
    return x.split(list(sizes_of(sizes) if sizes is not None else how["split"]), axis)


def cut(how: Attributes, x: Any, *given: Any) -> Any:
    """Slice."""
    starts, ends = (sizes_of(v) for v in (given[:2] or (tuple(how["starts"]), tuple(how["ends"]))))
    axes = sizes_of(given[2]) if len(given) > 2 and given[2] is not None else how.get("axes")
    steps = sizes_of(given[3]) if len(given) > 3 and given[3] is not None else (1,) * len(starts)
    if is_size(x) and isinstance(x, tuple):
        return x[starts[0] : ends[0] : steps[0]]
    if is_size(x):
        at = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes or range(x.ndim), steps, strict=False):
            at[axis] = slice(start, end, step)
        return x[tuple(at)]
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        if step < 0:
            x = x.flip(axis)
            n = x.shape[axis]
            turned = (n - 1 - (start + n if start < 0 else min(start, n - 1)), n)
            if end >= -n:
                turned = (turned[0], n - 1 - (end + n if end < 0 else end))
            start, end, step = *turned, -step
        at = [slice(None)] * (axis % x.dim()) + [
            slice(start, None if end >= 2**31 - 1 else end, step)
        ]
        x = x[tuple(at)]
    return x


def gather(how: Attributes, x: Any, index: Any) -> Any:
    """Gather along one axis."""
    if is_size(x):
        found = sizes_of(x)
        return found[int(index)] if not isinstance(index, tuple) else tuple(found[i] for i in index)
    axis = how.get("axis", 0) % x.dim()
    if is_size(index) and not isinstance(index, tuple):
        return x.select(axis, index)
    at = tensor_of(index).to(x.device)
    at = torch.where(at < 0, at + x.shape[axis], at)
    found = x.index_select(axis, at.reshape(-1))
    return found.reshape(*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])


def expand(how: Attributes, x: Any, sizes: Any) -> Tensor:
    """Expand; sizes of 1 stay."""
    x, wanted = tensor_of(x), sizes_of(sizes)
    own = (1,) * (len(wanted) - x.dim()) + tuple(x.shape)
    wanted = own[: len(own) - len(wanted)] + wanted
    return x.expand([a if b == 1 else b for a, b in zip(own, wanted, strict=True)])


def pad(
    how: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None
) -> Tensor:
    """Pad."""
    ends = sizes_of(pads) if pads is not None else tuple(how["pads"])
    half = len(ends) // 2
    where = [a % x.dim() for a in sizes_of(axes)] if axes is not None else list(range(half))
    around = [0] * (2 * x.dim())
    for i, axis in enumerate(where):
        around[2 * (x.dim() - 1 - axis)] = ends[i]
        around[2 * (x.dim() - 1 - axis) + 1] = ends[half + i]
    mode = how.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, around, value=float(value) if value is not None else how.get("value", 0.0))
    while len(around) > 2 and not any(around[-2:]):
        around = around[:-2]
    return F.pad(x, around, mode="replicate" if mode == "edge" else mode)


def constant_of_shape(how: Attributes, sizes: Any) -> Any:
    """ConstantOfShape."""
    value = how["value"] if "value" in how else torch.zeros(1)
    if value.dtype == torch.int64 and len(sizes_of(sizes)) == 1 and sizes_of(sizes)[0] <= MOST:
        return (value.item(),) * sizes_of(sizes)[0]
    return torch.full(sizes_of(sizes), value.reshape(-1)[0].item(), dtype=value.dtype)


def span(how: Attributes, start: Any, end: Any, step: Any) -> Any:
    """Range."""
    return torch.arange(*(v.item() if isinstance(v, Tensor) else v for v in (start, end, step)))


def where(how: Attributes, choice: Any, x: Any, y: Any) -> Any:
    """Where."""
    if is_size(choice) and is_size(x) and is_size(y):
        length = max(len(sizes_of(v)) for v in (choice, x, y))
        wide = [v * length if len(v) == 1 else v for v in map(sizes_of, (choice, x, y))]
        return tuple(a if c else b for c, a, b in zip(*wide, strict=True))
    return torch.where(*(tensor_of(v) for v in (choice, x, y)))


def depth_to_space(how: Attributes, x: Tensor) -> Tensor:
    """DepthToSpace."""
    b = how["blocksize"]
    if how.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    N, C, H, W = x.shape
    return (
        x.reshape(N, b, b, C // b**2, H, W).permute(0, 3, 4, 1, 5, 2).reshape(N, -1, H * b, W * b)
    )


SHAPES: dict[str, Operator] = {
    "Shape": shape,
    "Size": lambda how, x: x.numel(),
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": cut,
    "Gather": gather,
    "GatherElements": lambda how, x, at: torch.gather(x, how.get("axis", 0), tensor_of(at)),
    "GatherND": lambda how, x, at: x[tuple(tensor_of(at).unbind(-1))],
    "ScatterND": lambda how, x, at, new: tensor_of(x).index_put(
        tuple(tensor_of(at).unbind(-1)), tensor_of(new), how.get("reduction") == "add"
    ),
    "Trilu": lambda how, x, k=0: (torch.triu if how.get("upper", 1) else torch.tril)(x, int(k)),
    "Expand": expand,
    "Tile": lambda how, x, times: x.repeat(*sizes_of(times)),
    "Pad": pad,
    "ConstantOfShape": constant_of_shape,
    "Range": span,
    "Where": where,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": lambda how, x: F.pixel_unshuffle(x, how["blocksize"]),
}
