# SPDX-License-Identifier: Apache-2.0
"""Sizes that an ONNX file computes from the shapes of its inputs.

A size is not a tensor here: it stays plain integers (one, a tuple, or where a file arranges sizes in a
matrix, a numpy array of objects), so that a network with open axes can be traced.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 64
"""Integers up to which a constant counts as sizes."""

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
    if isinstance(value, np.ndarray):
        return torch.tensor(value.tolist())
    return torch.tensor(value) if is_size(value) else value


def sizes_of(value: Any) -> tuple[Any, ...]:
    """A value as integers."""
    if isinstance(value, Tensor | np.ndarray):
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


def matrix_of(sizes: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """Sizes arranged in rows."""
    found = np.empty(len(sizes), dtype=object)
    found[:] = sizes
    return found.reshape(shape)
