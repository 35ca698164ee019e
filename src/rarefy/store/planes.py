# SPDX-License-Identifier: Apache-2.0
"""Tensors of many distinct values, cut into planes of bits that are coded one by one.

The front plane holds exponents (and as many bits of mantissa as pay), the last ones are close to
noise and stored as they are. Trained float32 weights shrink about 1.2 times. Where the last byte is
no noise, it is the end of it that counts (training adds small steps to larger numbers, which leaves
zeros at the end of smaller ones), so it is cut in halves and two values share a symbol.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.bits import pack
from rarefy.store.fields import Cursor
from rarefy.store.frequencies import entropy
from rarefy.store.keys import PIECE, UNSIGNED, from_keys, histogram, key_bits
from rarefy.store.runs import SymbolReader, open_run
from rarefy.store.symbols import Coded, plan_fixed, plan_run

_WIDEST, _FEW, _HALVED = 12, 1 << 12, 16
_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], 1).astype(np.uint8).view(np.uint16)


def plane_widths(width: int, front: int, halved: bool = False) -> list[int]:
    """Bits of each plane from the front: `front`, what is left to whole bytes, then bytes.

    Examples:
        >>> plane_widths(32, 9)
        [9, 7, 8, 8]
        >>> plane_widths(32, 9, halved=True)
        [9, 7, 8, 4, 4]
    """
    rest = width - front
    widths = [front, *([rest % 8] if rest % 8 else []), *([8] * (rest // 8))]
    return [*widths[:-1], 4, 4] if halved else widths


def plan_planes(pattern: NDArray[Any], coder: str, kind: int = UNSIGNED) -> Coded:
    """All planes of the values' keys; the first byte tells how they are cut.

    A long plane is cut out when it is counted and again when it is written, so none is held in between.

    Args:
        pattern: shape (n,), n > 0, unsigned.
        coder: as in `symbols`.
        kind: as in `keys`.
    """
    width, size = 8 * pattern.dtype.itemsize, pattern.size
    first = _front(pattern, kind)
    front = first.size.bit_length() - 1
    long = size >= _FEW
    halved = long and width - front >= 16 and not _noise(pattern, kind, 0, 4)
    parts, rest = [], width
    for bits in plane_widths(width, front, halved):
        rest -= bits
        paired = halved and bits == 4
        cut, used = partial(_plane, pattern, kind, rest, bits, paired), 8 if paired else bits
        if long and _noise(pattern, kind, rest, bits):
            parts.append(plan_fixed(cut, used, -(-size * bits // used)))
            continue
        if not long:
            cut = partial(np.asarray, cut())
        counts = first if rest + bits == width else histogram(cut(), 1 << used)
        parts.append(plan_run(cut, counts, coder))

    def pieces() -> Iterator[bytes]:
        yield bytes([front | _HALVED * halved])
        for part in parts:
            yield from part.pieces()

    return Coded(8 + sum(part.bits for part in parts), pieces)


def _noise(pattern: NDArray[Any], kind: int, rest: int, bits: int) -> bool:
    """Whether a plane is noise for the most part: a twentieth less is not worth a decoder's time.

    A long tensor is judged by a sample.
    """
    sample = pattern[:: pattern.size // _FEW | 1]  # an odd stride meets all columns
    counts = histogram(_plane(sample, kind, rest, bits), 1 << bits)
    return entropy(counts) > 0.95 * bits * sample.size


def _plane(
    pattern: NDArray[Any], kind: int, rest: int, bits: int, paired: bool = False
) -> NDArray[Any]:
    """The bits of all keys that have `rest` more behind them; paired, two values share a byte."""
    plane = np.empty(pattern.size, dtype=np.uint8 if bits <= 8 else np.uint16)
    for start in range(0, pattern.size, PIECE):
        part = slice(start, start + PIECE)
        plane[part] = key_bits(pattern[part], kind, rest, bits)
    return np.frombuffer(pack(plane, 4), dtype=np.uint8) if paired else plane


def _front(pattern: NDArray[Any], kind: int) -> NDArray[np.int64]:
    """Histogram of the front plane, which it cuts: more bits fit better but cost a longer table."""
    width = 8 * pattern.dtype.itemsize
    if width == 8:
        return histogram(_plane(pattern, kind, 0, 8), 256)
    widest = 9 if pattern.size < _FEW else _WIDEST
    counts = histogram(_plane(pattern, kind, width - widest, widest), 1 << widest)
    merged = {widest: counts}
    for front in range(widest - 1, 7, -1):
        counts = counts[::2] + counts[1::2]
        merged[front] = counts
    costs = {
        front: entropy(found) + 3 * np.count_nonzero(found) + (_WIDEST - front) * pattern.size
        for front, found in merged.items()
    }
    # A table twice as long has to be worth its time.
    limit = 1.004 * min(costs.values())
    return merged[min(front for front in merged if costs[front] <= limit)]


class PlanesReader:
    """Yields the patterns of values that `plan_planes` cut into planes."""

    def __init__(self, cursor: Cursor, count: int, kind: int, dtype: np.dtype[Any]) -> None:
        """Take the planes of `count` values from the cursor."""
        width, way = 8 * dtype.itemsize, cursor.byte()
        front, halved = way & ~_HALVED, bool(way & _HALVED)
        if not 8 <= front <= min(width, _WIDEST) or (halved and width - front < 16):
            raise FileError(f"a front plane of {front} bits is not possible for {dtype.name}")
        self._kind, self._dtype = kind, np.dtype(f"<u{dtype.itemsize}")
        self._widths = plane_widths(width, front, halved)
        self._planes: list[SymbolReader] = []
        for size in self._widths:
            if halved and size == 4:
                self._planes.append(_Halves(open_run(cursor, (count + 1) // 2, 256)))
            else:
                self._planes.append(open_run(cursor, count, 1 << size))
        self.coding = f"planes+{self._planes[0].coding}"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        keys = np.empty(count, dtype=self._dtype)
        octets = keys.view(np.uint8).reshape(count, self._dtype.itemsize)
        place, part, bits = octets.shape[1], None, 0
        for plane, size in zip(self._planes, self._widths, strict=True):
            symbols, bits = plane.read(count), bits + size
            if size == bits == 8:  # a byte by itself goes straight to its place
                place, bits = place - 1, 0
                octets[:, place] = symbols
                continue
            more = symbols.astype(np.uint16)
            part = more if part is None else (part << np.uint16(size)) | more
            while bits >= 8 and bits % 8 == 0:
                place, bits = place - 1, bits - 8
                octets[:, place] = part >> np.uint16(bits)
        return from_keys(keys.astype(self._dtype.newbyteorder("="), copy=False), self._kind)


class _Halves:
    """Yields values of four bits, two of which share a byte, the first in its lower half."""

    def __init__(self, octets: SymbolReader) -> None:
        self._octets, self.coding = octets, octets.coding
        self._ready = np.zeros(0, dtype=np.uint8)

    def read(self, count: int) -> NDArray[Any]:
        octets = self._octets.read(max(count - self._ready.size + 1, 0) // 2)
        halves = _PAIRS.reshape(-1).take(octets).view(np.uint8)
        if self._ready.size:
            halves = np.concatenate([self._ready, halves])
        self._ready = halves[count:]
        return halves[:count]
