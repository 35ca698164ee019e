# SPDX-License-Identifier: Apache-2.0
"""Where the non-zeros of a tensor are: a bitmap, or the gaps between them, entropy-coded.

For independent zeros both cost the same number of bits; gaps are faster on sparse tensors, and
either may follow the structure of a real one better, so both are planned and the cheaper is kept.
The relative index with gaps of fixed width is `sparse.relative_index`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import Cursor, varint
from rarefy.store.frequencies import entropy
from rarefy.store.keys import histogram
from rarefy.store.runs import BERNOULLI, GEOMETRIC, open_run
from rarefy.store.symbols import Coded, plan_run

_CHUNK = 1 << 15
_ESCAPES = (15, 63, 255, 1023, 4095)


def plan_bitmap(places: NDArray[Any], size: int, coder: str) -> Coded:
    """Eight positions a symbol, lowest bit first.

    Args:
        places: shape (m,), increasing, below `size`.
        size: number of values of the tensor.
        coder: as in `symbols`.
    """
    marks = np.zeros(size, dtype=np.uint8)
    marks[places] = 1
    octets = np.packbits(marks, bitorder="little")
    counts = histogram(octets, 256)
    return plan_run(lambda: octets, counts, coder, BERNOULLI)


def plan_gaps(places: NDArray[Any], coder: str) -> Coded:
    """The number of zeros in front of each non-zero; gaps above a limit escape by that limit.

    Symbols 0 … limit-1 are gaps; the symbol `limit` skips that many zeros and is followed by the
    rest of the gap.
    """
    lengths, times = _histogram(_gaps(places))
    tables = [_escaped_counts(lengths, times, limit) for limit in _ESCAPES]
    counts = min(tables, key=lambda table: entropy(table) + 3 * np.count_nonzero(table))
    limit = counts.size - 1

    def symbols() -> NDArray[np.uint16]:
        whole, rest = np.divmod(_gaps(places), limit)
        whole += 1
        ends = np.cumsum(whole)
        ends -= 1
        out = np.full(int(ends[-1]) + 1, limit, dtype=np.uint16)
        out[ends] = rest
        return out

    head = varint(_ESCAPES.index(limit)) + varint(int(counts[limit]))
    run = plan_run(symbols, counts, coder, GEOMETRIC)
    return Coded(8 * len(head) + run.bits, lambda: [head, *run.pieces()])


def _gaps(places: NDArray[Any]) -> NDArray[Any]:
    gaps = np.diff(places, prepend=places.dtype.type(-1))
    gaps -= 1
    return gaps


def _histogram(gaps: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The gaps that occur, and how often each does."""
    longest = int(gaps.max())
    if longest < 1 << 16:
        times = histogram(gaps, longest + 1)
        lengths = np.flatnonzero(times)
        return lengths, times[lengths]
    return np.unique(gaps, return_counts=True)


def _escaped_counts(
    lengths: NDArray[np.int64], times: NDArray[np.int64], limit: int
) -> NDArray[np.int64]:
    whole, rest = np.divmod(lengths, limit)
    counts = np.zeros(limit + 1, dtype=np.int64)
    np.add.at(counts, rest, times)
    counts[limit] = whole @ times
    return counts


class BitmapReader:
    """Yields the places of ones in pieces."""

    def __init__(self, cursor: Cursor, size: int, count: int) -> None:
        """Take a bitmap of `size` bits, `count` of them set, from the cursor."""
        self._size, self._count = size, count
        self._octets = open_run(cursor, (size + 7) // 8, 256)
        self.coding = f"bitmap({self._octets.coding})"

    def pieces(self) -> Iterator[NDArray[np.int64]]:
        """Increasing places, at most 2**15 at a time.

        Raises:
            FileError: not `count` places below `size`.
        """
        found = 0
        for start in range(0, self._size, _CHUNK):
            stop = min(start + _CHUNK, self._size)
            octets = self._octets.read((stop - start + 7) // 8).astype(np.uint8)
            places = np.flatnonzero(np.unpackbits(octets, bitorder="little")) + start
            found += places.size
            if found > self._count or (places.size and places[-1] >= self._size):
                raise FileError(f"a bitmap marks more than the {self._count} values it announced")
            yield places
        if found != self._count:
            raise FileError(f"a bitmap marks {found} of {self._count} values")


class GapReader:
    """Yields the places that gaps lead to, in pieces."""

    def __init__(self, cursor: Cursor, size: int, count: int) -> None:
        """Take the gaps of `count` places below `size` from the cursor."""
        self._limit = _ESCAPES[cursor.varint(len(_ESCAPES) - 1)]
        self._size, self._count = size, count
        self._symbols = count + cursor.varint(size // self._limit)
        self._reader = open_run(cursor, self._symbols, self._limit + 1)
        self.coding = f"gaps({self._reader.coding})"

    def pieces(self) -> Iterator[NDArray[np.int64]]:
        """Increasing places, at most 2**15 at a time.

        Raises:
            FileError: a gap leads past the end, or there are not `count` places.
        """
        last, found = -1, 0
        for start in range(0, self._symbols, _CHUNK):
            symbols: Any = self._reader.read(min(_CHUNK, self._symbols - start)).astype(np.int64)
            real = symbols < self._limit
            places = last + np.cumsum(symbols + real)
            last = int(places[-1])
            places = places[real]
            found += places.size
            if last >= self._size or found > self._count:
                raise FileError(f"gaps lead to place {last} of {self._size}")
            yield places
        if found != self._count:
            raise FileError(f"gaps lead to {found} of {self._count} values")
