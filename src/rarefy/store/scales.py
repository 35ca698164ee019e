# SPDX-License-Identifier: Apache-2.0
"""How large a tensor's rows, columns and kernel positions are, in half octaves of the mean.

Weights differ in scale from channel to channel. Magnitudes are taken as a product of three factors,
one for each row (output channel), column (input channel) and position (in the kernel), so that the
sum of three small integers says how large a weight is to be expected. The integers are written in
front of the weights, so a decoder knows every weight's context before it begins.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter, Cursor, unzigzag, zigzag
from rarefy.store.keys import histogram
from rarefy.store.runs import open_run
from rarefy.store.symbols import plan_run

MOST = 48
"""A scale is at most so many half octaves above the smallest of its axis."""

_AXES = ((1, 2), (0, 2), (0, 1))
_SHRINK = 2.0


class Scales(NamedTuple):
    """Half octaves above or below the mean, int8: (rows,), (columns,), (positions,)."""

    rows: NDArray[np.int8]
    columns: NDArray[np.int8]
    positions: NDArray[np.int8]

    def piece(self, start: int, stop: int) -> NDArray[np.int8]:
        """The sums for the rows from `start` to `stop`, flat in the order of the weights."""
        sums = self.rows[start:stop, None, None] + self.columns[:, None] + self.positions
        return np.asarray(sums, dtype=np.int8).reshape(-1)

    def span(self) -> tuple[int, int]:
        """The least and the largest sum that there may be."""
        used = [axis for axis in self if axis.size]
        return sum(int(axis.min()) for axis in used), sum(int(axis.max()) for axis in used)


def grid_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and positions of a tensor; below two axes all is one row.

    Examples:
        >>> grid_shape((64, 32, 3, 3)), grid_shape((10,))
        ((64, 32, 9), (1, 10, 1))
    """
    if len(shape) < 2:
        return 1, prod(shape), 1
    return shape[0], shape[1], prod(shape[2:])


def flat(shape: tuple[int, int, int]) -> Scales:
    """All scales 0."""
    return Scales(*(np.zeros(size, dtype=np.int8) for size in shape))


def magnitude_scales(sizes: NDArray[Any]) -> Scales:
    """Scales of non-negative magnitudes, shape (rows, columns, positions), from their means."""
    whole = sizes.sum(dtype=np.int64)
    mean = max(float(whole) / max(sizes.size, 1), 1e-30)
    found = []
    for axes in _AXES:
        sums = sizes.sum(axis=axes, dtype=np.int64)
        count = sizes.size / max(sums.size, 1)
        ratio = (sums + _SHRINK * mean) / ((count + _SHRINK) * mean)
        found.append(_rounded(2 * np.log2(np.maximum(ratio, 1e-12))))
    return Scales(*found)


def choices(scales: Scales) -> list[Scales]:
    """Which axes to use: rows, columns, both, all three; those that say nothing are left out."""
    none = flat((scales.rows.size, scales.columns.size, scales.positions.size))
    telling = [bool(axis.any()) for axis in scales]
    found = []
    for used in ((True, False, False), (False, True, False), (True, True, False), (True,) * 3):
        if all(a or not b for a, b in zip(telling, used, strict=True)) or used == (True,) * 3:
            parts = (s if u else n for s, n, u in zip(scales, none, used, strict=True))
            found.append(Scales(*parts))
    return found


def write_scales(scales: Scales, coder: str) -> bytes:
    """Scales as bytes; axes without any take one bit."""
    writer, parts = BitWriter(), []
    for axis in scales:
        used = bool(axis.any())
        writer.write(int(used), 1)
        if used:
            low = int(axis.min())
            writer.golomb(zigzag(low), 3)
            symbols = (axis.astype(np.int64) - low).astype(np.uint8)
            counts = histogram(symbols, MOST)
            parts.append(plan_run(lambda run=symbols: run, counts, coder).encode())  # type: ignore[misc]
    return writer.to_bytes() + b"".join(parts)


def read_scales(cursor: Cursor, shape: tuple[int, int, int]) -> Scales:
    """Undo `write_scales`.

    Raises:
        FileError: damaged, or scales beyond what a byte holds.
    """
    bits = BitReader(cursor)
    lows: list[int | None] = []
    for _ in shape:
        lows.append(unzigzag(bits.golomb(3)) if bits.read(1) else None)
        if abs(lows[-1] or 0) > MOST:
            raise FileError(f"a scale of {lows[-1]} half octaves is not possible")
    bits.close()
    axes = []
    for low, size in zip(lows, shape, strict=True):
        symbols = np.zeros(size, dtype=np.int16)
        if low is not None:
            symbols = open_run(cursor, size, MOST).read(size).astype(np.int16)
            symbols += np.int16(low)
        if _reach(symbols) > 127:
            raise FileError("a scale is not possible")
        axes.append(symbols.astype(np.int8))
    if sum(_reach(axis) for axis in axes) > 127:
        raise FileError("scales add up to more than is possible")
    return Scales(*axes)


def _reach(values: NDArray[Any]) -> int:
    return max(int(values.max()), -int(values.min())) if values.size else 0


def _rounded(values: NDArray[Any]) -> NDArray[np.int8]:
    whole = np.rint(values)
    middle = float(np.median(whole)) if whole.size else 0.0
    reach = MOST // 4
    return np.clip(whole, middle - reach, middle + reach).clip(-20, 20).astype(np.int8)
