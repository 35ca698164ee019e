# SPDX-License-Identifier: Apache-2.0
"""Codebooks: the few distinct values of a tensor, and for each value its place among them.

S. Han, H. Mao, W. J. Dally, "Deep Compression", ICLR 2016 (arXiv:1510.00149), section 3. Levels
are ordered by their keys (magnitude first). They are written either as increasing keys, or, where
that is exact and shorter, as one scale and small integers: what affine quantisation leaves in a
float tensor.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import (
    BitReader,
    BitWriter,
    Cursor,
    read_increasing,
    write_increasing,
)
from rarefy.store.keys import FLOAT, PIECE, distinct, from_keys, to_keys
from rarefy.store.runs import open_run

MOST_LEVELS = 4096
"""Tensors with more distinct values are not searched for a codebook."""

_DIVISORS = np.arange(1, 65)
"""Multiples of the scale that the smallest level is tried to be."""

_SAMPLE, _FEW = 1 << 14, 1 << 10


def find_levels(pattern: NDArray[Any], kind: int) -> NDArray[Any] | None:
    """Keys of all distinct values in increasing order, or None where there are more than `MOST_LEVELS`.

    Args:
        pattern: shape (n,), n > 0, unsigned.
        kind: as in `keys`.
    """
    if pattern.dtype.itemsize == 1:
        found = np.flatnonzero(np.bincount(pattern, minlength=256)).astype(np.uint8)
    elif pattern.size <= _SAMPLE:
        found = distinct(pattern)
    else:
        searched = _search(pattern)
        if searched is None:
            return None
        found = searched
    return None if found.size > MOST_LEVELS else np.sort(to_keys(found, kind))


def pays(levels: NDArray[Any], size: int, kind: int, dtype: np.dtype[Any]) -> bool:
    """Whether codes of a codebook may take less than `size` values: few levels, or levels on a grid."""
    return levels.size <= max(16, size // 2) or (
        kind == FLOAT and find_scale(levels, dtype) is not None
    )


def _search(pattern: NDArray[Any]) -> NDArray[Any] | None:
    """Distinct values of a long array: those of a sample, then of what the sample misses."""
    few = pattern[:: pattern.size // _FEW]
    if distinct(few).size > 0.95 * few.size:
        return None  # were there MOST_LEVELS values or fewer, more of the few would be the same
    sample = np.sort(pattern[:: pattern.size // _SAMPLE])
    first = np.diff(sample, prepend=~sample[:1]) != 0
    found = sample[first]
    once = np.count_nonzero(first[:-1] & first[1:])
    if found.size > 64 and once > found.size // 2:
        return None
    rest = pattern
    while found.size <= MOST_LEVELS:
        pieces = [rest[start : start + PIECE] for start in range(0, rest.size, PIECE)]
        place = _finder(found, rest.size)
        rest = np.concatenate([p[found.take(place(p)) != p] for p in pieces])
        if not rest.size:
            return found
        found = distinct(np.concatenate([found, rest[:: 1 + rest.size // _SAMPLE]]))
    return None


def level_codes(pattern: NDArray[Any], levels: NDArray[Any], kind: int) -> NDArray[Any]:
    """The place of each value in the codebook, shape (n,), uint8 or uint16."""
    small = np.uint8 if levels.size <= 256 else np.uint16
    values = from_keys(levels, kind)
    if pattern.dtype.itemsize <= 2:
        table = np.zeros(1 << 8 * pattern.dtype.itemsize, dtype=small)
        table[values] = np.arange(levels.size)
        return table[pattern]
    codes, place = np.empty(pattern.size, dtype=small), _finder(values, pattern.size)
    for start in range(0, pattern.size, PIECE):
        codes[start : start + PIECE] = place(pattern[start : start + PIECE])
    return codes


def _finder(levels: NDArray[Any], uses: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Gives for each of some values its place among the levels; any place where it is none of them.

    One multiplication and one table beat a binary search several times; a multiplier that keeps
    the levels apart is found by trial. `uses` values in all have to be worth it.
    """
    width = 8 * levels.dtype.itemsize
    small, bits = (np.uint8, 16) if levels.size <= 256 else (np.uint16, min(20, width))
    shift, factor = levels.dtype.type(width - bits), 0x9E3779B97F4A7C15
    for _ in range(64 if levels.size <= min(2048, uses >> 6) else 0):
        multiplier = levels.dtype.type(factor >> 64 - width | 1)
        slots = (levels * multiplier) >> shift
        if distinct(slots).size == levels.size:
            table = np.zeros(1 << bits, dtype=small)
            table[slots] = np.arange(levels.size)
            return lambda values: table[(values * multiplier) >> shift]
        factor = factor * 0xD1342543DE82EF95 + 1 & (1 << 64) - 1
    order = np.argsort(levels)
    ordered, last = levels[order], levels.size - 1
    return lambda values: order[np.minimum(np.searchsorted(ordered, values), last)]


def write_levels(levels: NDArray[Any], kind: int, dtype: np.dtype[Any]) -> bytes:
    """A codebook of increasing keys; `read_levels` reads it.

    Args:
        levels: shape (k,), k at least 1, increasing.
        kind: as in `keys`.
        dtype: real dtype of the values, as wide as a key.
    """
    plain = BitWriter()
    plain.number(levels.size)
    plain.write(0, 1)
    write_increasing(plain, levels.tolist())
    scale = find_scale(levels, dtype) if kind == FLOAT else None
    if scale is None:
        return plain.to_bytes()
    pattern, integers = scale
    scaled = BitWriter()
    scaled.number(levels.size)
    scaled.write(1, 1)
    scaled.write(pattern, 8 * levels.dtype.itemsize)
    write_increasing(scaled, integers)
    return min(plain.to_bytes(), scaled.to_bytes(), key=len)


def read_levels(reader: BitReader, kind: int, dtype: np.dtype[Any], most: int) -> NDArray[Any]:
    """The codebook's patterns in the order of their codes.

    Raises:
        FileError: more than `most` levels, or levels that do not fit the dtype.
    """
    count = reader.number(most)
    scaled = bool(reader.read(1))
    width = 8 * dtype.itemsize
    scale = reader.read(width) if scaled else 0
    if not count:
        raise FileError("a codebook has no levels")
    values = read_increasing(reader, count)
    if values[-1] >> width:
        raise FileError(f"a codebook has levels wider than {width} bits")
    keys = np.array(values, dtype=f"u{dtype.itemsize}")
    if not scaled:
        return from_keys(keys, kind)
    if kind != FLOAT or dtype.itemsize > 4:
        raise FileError(f"a codebook of {dtype.name} can't have a scale")
    return multiples(scale, keys, dtype)


class CodebookReader:
    """Yields the patterns of values that were stored as codes of a codebook."""

    def __init__(self, cursor: Cursor, count: int, kind: int, dtype: np.dtype[Any]) -> None:
        """Take codebook and codes of `count` values from the cursor."""
        bits = BitReader(cursor)
        self._levels = read_levels(bits, kind, dtype, MOST_LEVELS)
        bits.close()
        self._codes = open_run(cursor, count, self._levels.size)
        self.coding = f"codebook+{self._codes.coding}"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        return self._levels.take(self._codes.read(count))


def multiples(scale: int, folded: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Patterns of scale times integers, the product rounded once to the dtype.

    The integers come as twice their magnitude plus their sign, so that -0.0 can be told from 0.0.
    """
    factor = np.array([scale], dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    signs = 1.0 - 2.0 * (folded & folded.dtype.type(1))
    with np.errstate(all="ignore"):
        product = factor * ((folded >> folded.dtype.type(1)) * signs)
        return product.astype(dtype).view(f"u{dtype.itemsize}")


def find_scale(levels: NDArray[Any], dtype: np.dtype[Any]) -> tuple[int, list[int]] | None:
    """Pattern of a scale s, and integers q folded and increasing, with levels = s q exactly.

    Args:
        levels: keys of distinct values, increasing, and so are their magnitudes.
        dtype: real dtype of the values, as wide as a key.
    """
    if levels.size < 4 or dtype.itemsize not in (2, 4):
        return None
    exact = from_keys(levels, FLOAT)
    with np.errstate(all="ignore"):
        values = exact.view(dtype).astype(np.float64)
        magnitudes = np.abs(values)
        largest = magnitudes[-1]
        if not np.isfinite(largest):
            return None
        for most in _reaches(magnitudes, _fineness(dtype)):
            integers = np.rint(magnitudes * (most / largest)).astype(np.uint64)
            folded = 2 * integers + np.signbit(values)
            start = int(np.array([largest / most]).astype(dtype).view(levels.dtype)[0])
            for pattern in range(max(start - 2, 0), start + 3):
                if np.array_equal(multiples(pattern, folded, dtype), exact):
                    return pattern, folded.tolist()
    return None


@cache
def _fineness(dtype: np.dtype[Any]) -> float:
    """What lies between 1 and the next larger value of a dtype."""
    one = np.ones(1, dtype).view(f"u{dtype.itemsize}")
    return float((one + one.dtype.type(1)).view(dtype)[0]) - 1


def _reaches(magnitudes: NDArray[Any], fineness: float) -> list[int]:
    """Integers that the largest of some magnitudes may be if a few of them are multiples of one scale.

    Args:
        magnitudes: increasing, at most two of them zero.
        fineness: of their dtype, relative to a value.
    """
    smallest, largest = magnitudes[np.flatnonzero(magnitudes[:3])[0]], magnitudes[-1]
    most = np.rint(largest / smallest * _DIVISORS)
    most = most[most <= 1 << 15]
    few = magnitudes[:: 1 + magnitudes.size // 16, None] * (most / largest)
    off = np.abs(few - np.rint(few)).max(0)
    return [int(m) for m in most[off <= most * fineness]]
