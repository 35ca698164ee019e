# SPDX-License-Identifier: Apache-2.0
"""Tensors of many distinct values, cut into planes of bits that are coded one by one.

The front plane holds exponents (and as many bits of mantissa as pay), the last ones are close to
noise and stored as they are. Trained float32 weights shrink about 1.2 times.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import Cursor
from rarefy.store.keys import from_keys
from rarefy.store.runs import open_run
from rarefy.store.symbols import Coded, entropy, plan_run

_WIDEST, _FEW = 12, 1 << 12


def plane_widths(width: int, front: int) -> list[int]:
    """Bits of each plane from the front: `front`, what is left to whole bytes, then bytes.

    Examples:
        >>> plane_widths(32, 9)
        [9, 7, 8, 8]
    """
    rest = width - front
    return [front, *([rest % 8] if rest % 8 else []), *([8] * (rest // 8))]


def plan_planes(keys: NDArray[Any], coder: str) -> Coded:
    """All planes of the keys, shape (n,), n > 0; the width of the front plane comes first."""
    width = 8 * keys.dtype.itemsize
    front = _front_width(keys, width)
    parts, rest = [], width
    for size in plane_widths(width, front):
        rest -= size
        plane = (keys >> keys.dtype.type(rest)) & keys.dtype.type((1 << size) - 1)
        plane = plane.astype(np.uint8 if size <= 8 else np.uint16)
        counts = np.bincount(plane, minlength=1 << size)
        parts.append(plan_run(partial(np.asarray, plane), counts, coder))
    return Coded(
        8 + sum(part.bits for part in parts),
        lambda: bytes([front]) + b"".join(part.encode() for part in parts),
    )


def _front_width(keys: NDArray[Any], width: int) -> int:
    """Bits of the front plane: more follow the distribution closer but cost a longer table."""
    if width == 8:
        return 8
    top = (keys >> keys.dtype.type(width - _WIDEST)).astype(np.uint16)
    counts = np.bincount(top, minlength=1 << _WIDEST)

    def bits(front: int) -> float:
        merged = counts.reshape(1 << front, -1).sum(axis=1)
        return entropy(merged) + 3 * np.count_nonzero(merged) + (_WIDEST - front) * keys.size

    widest = 9 if keys.size < _FEW else _WIDEST
    costs = {front: bits(front) for front in range(8, widest + 1)}
    # A table twice as long has to be worth its time.
    return next(front for front in costs if costs[front] <= 1.004 * min(costs.values()))


class PlanesReader:
    """Yields the patterns of values that `plan_planes` cut into planes."""

    def __init__(self, cursor: Cursor, count: int, kind: int, dtype: np.dtype[Any]) -> None:
        """Take the planes of `count` values from the cursor."""
        width, front = 8 * dtype.itemsize, cursor.byte()
        if not 8 <= front <= min(width, _WIDEST):
            raise FileError(f"a front plane of {front} bits is not possible for {dtype.name}")
        self._kind, self._dtype = kind, np.dtype(f"u{dtype.itemsize}")
        self._widths = plane_widths(width, front)
        self._planes = [open_run(cursor, count, 1 << size) for size in self._widths]
        self.coding = f"planes+{self._planes[0].coding}"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        keys = self._planes[0].read(count).astype(self._dtype)
        for plane, size in zip(self._planes[1:], self._widths[1:], strict=True):
            keys <<= self._dtype.type(size)
            keys |= plane.read(count).astype(self._dtype, copy=False)
        return from_keys(keys, self._kind)
