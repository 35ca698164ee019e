# SPDX-License-Identifier: Apache-2.0
"""Codes of a codebook under contexts: integers times a step where the levels are such.

Levels that are multiples of one step take no more than that step and the largest integer, and the
symbols 0, -1, 1, -2, 2, … tell magnitude and sign apart. Any other levels are listed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.codebook import MOST_LEVELS, find_scale, multiples, read_levels, write_levels
from rarefy.store.contexts import MOST_SYMBOLS, ContextReader, plan_contexts
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.keys import FLOAT, SIGNED, from_keys
from rarefy.store.symbols import Coded


def integers_of(
    levels: NDArray[Any], kind: int, dtype: np.dtype[Any]
) -> tuple[int, NDArray[np.int64]] | None:
    """The pattern of a step (0 for integers) and the integer that each level is, or None.

    Args:
        levels: increasing keys, shape (k,).
        kind: as in `keys`.
        dtype: of the values.
    """
    if kind == SIGNED:
        if int(levels[-1]) > 2 * MOST_SYMBOLS:
            return None
        folded = levels.astype(np.int64)
        return 0, np.where(folded & 1, -(folded + 1 >> 1), folded >> 1)
    if kind != FLOAT or dtype.itemsize not in (2, 4) or np.any(levels == 1):  # 1 is -0.0
        return None
    keys = levels.astype(np.int64)
    sizes = np.unique(keys[keys > 1] >> 1)
    if sizes.size == 1:
        size, signs = int(sizes[0]), np.where(keys & 1, -1, 1)
        step = np.array([size], dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
        return (size, np.where(keys > 1, signs, 0)) if np.isfinite(step[0]) else None
    found = find_scale(levels, dtype)
    if found is None:
        return None
    folded = np.array(found[1], dtype=np.int64)
    return found[0], np.where(folded & 1, -(folded >> 1), folded >> 1)


def plan_codes(
    codes: NDArray[Any],
    levels: NDArray[Any],
    kind: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    coder: str,
) -> Coded | None:
    """Plan codes under contexts, or None where that does not pay; `CodesReader` reads them.

    Args:
        codes: shape (n,), each value's place among the levels.
        levels, kind, dtype: of the codebook, as in `codebook.write_levels`.
        shape: of the tensor.
        coder: as in `symbols`.
    """
    found, writer = integers_of(levels, kind, dtype), BitWriter()
    alphabet = levels.size
    if found is not None and 2 * int(np.abs(found[1]).max()) < MOST_SYMBOLS:
        step, integers = found
        largest = int(np.abs(integers).max())
        writer.write(1, 1)
        write_reach(writer, step, largest, kind, dtype)
        book, alphabet = writer.to_bytes(), 2 * largest + 1
        table = 2 * np.abs(integers) - (integers < 0)
        codes = table.astype(np.uint8 if alphabet <= 256 else np.uint16)[codes]
    elif 2 <= alphabet <= MOST_SYMBOLS:
        writer.write(0, 1)
        book = writer.to_bytes() + write_levels(levels, kind, dtype)
        found = None
    else:
        return None
    return behind(book, plan_contexts(codes, alphabet, found is not None, shape, coder))


def write_reach(
    writer: BitWriter, step: int, largest: int, kind: int, dtype: np.dtype[Any]
) -> None:
    """Append the pattern of a step (integers have none) and the largest multiple of it."""
    writer.write(step, 8 * dtype.itemsize if kind == FLOAT else 0)
    writer.golomb(largest, 3)


def read_reach(bits: BitReader, kind: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Undo `write_reach`.

    Raises:
        FileError: more multiples than there are symbols, or a dtype that has none.
    """
    step, largest = bits.read(8 * dtype.itemsize) if kind == FLOAT else 0, bits.golomb(3)
    if 2 * largest >= MOST_SYMBOLS or (kind == FLOAT and dtype.itemsize > 4):
        raise FileError(f"integers up to {largest} are not possible for {dtype.name}")
    return step, largest


def behind(book: bytes, run: Coded | None) -> Coded | None:
    """A run of codes behind what they mean; None where there is no run."""
    if run is None:
        return None
    return Coded(8 * len(book) + run.bits, lambda: [book, *run.pieces()])


class CodesReader:
    """Yields the patterns of values that `plan_codes` wrote."""

    def __init__(
        self, cursor: Cursor, shape: tuple[int, ...], kind: int, dtype: np.dtype[Any]
    ) -> None:
        """Take the values of a whole tensor from the cursor."""
        bits = BitReader(cursor)
        if bits.read(1):
            step, largest = read_reach(bits, kind, dtype)
            bits.close()
            self._levels = lattice(step, 2 * largest + 1, kind, dtype)
        else:
            bits.close()
            bits = BitReader(cursor)
            self._levels = read_levels(bits, kind, dtype, MOST_LEVELS)
            bits.close()
        self._codes = ContextReader(cursor, self._levels.size, shape)
        self.coding = f"codebook+{self._codes.coding}"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        return self._levels.take(self._codes.read(count))


def lattice(step: int, size: int, kind: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Patterns of the integers 0, -1, 1, -2, 2, … times the step, shape (size,)."""
    symbols = np.arange(size, dtype=np.int64)
    if kind == FLOAT:
        return multiples(step, symbols + 2 * (symbols & 1), dtype)
    return from_keys(symbols.astype(f"u{dtype.itemsize}"), kind)
