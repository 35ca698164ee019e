# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that move values about or compute with sizes, as functions on tensors.

A size is not a tensor here: what the file computes from the shapes of its inputs stays plain integers (a
tuple, or one number), so that a network with open axes can be traced.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Attributes: TypeAlias = Mapping[str, Any]
Operator: TypeAlias = Callable[..., Any]

INTEGERS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Mod": operator.mod,
    "Max": max,
    "Min": min,
    "Equal": operator.eq,
}


def is_size(value: Any) -> bool:
    """Whether a value is one number or a tuple of them."""
    return value is not None and not isinstance(value, Tensor)


def tensor_of(value: Any) -> Any:
    """A value as a tensor."""
    return torch.tensor(value) if is_size(value) else value


def sizes_of(value: Any) -> tuple[Any, ...]:
    """A value as integers."""
    if isinstance(value, Tensor):
        return tuple(value.reshape(-1).tolist())
    return value if isinstance(value, tuple) else (value,)


def on_sizes(name: str, values: list[Any]) -> Any:
    """An operator between integers, entry by entry."""
    do = INTEGERS[name]
    if not any(isinstance(v, tuple) for v in values):
        return do(*values)
    length = max(len(v) for v in values if isinstance(v, tuple))
    wide = [v * length if len(v) == 1 else v for v in map(sizes_of, values)]
    return tuple(do(a, b) for a, b in zip(*wide, strict=True))


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
    if is_size(x) and len(wanted) < 2:
        return sizes_of(x) if wanted else sizes_of(x)[0]
    x = tensor_of(x)
    zero = how.get("allowzero", 0)
    return x.reshape([x.shape[i] if not n and not zero else n for i, n in enumerate(wanted)])


def flatten(how: Attributes, x: Tensor) -> Tensor:
    """Flatten to two axes."""
    axis = how.get("axis", 1) % (x.dim() + 1)
    if axis == 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def transpose(how: Attributes, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(list(how.get("perm", range(x.dim() - 1, -1, -1))))


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
    if is_size(x):
        return sizes_of(x)[starts[0] : ends[0] : steps[0]]
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
