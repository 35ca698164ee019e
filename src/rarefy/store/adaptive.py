# SPDX-License-Identifier: Apache-2.0
"""Tensors of few levels bit by bit under mixed contexts: slow, but nothing is told in advance.

Whether a weight is zero, its sign, whether its magnitude goes on beyond 1, 2, …: each is a decision
whose chance is mixed from what neighbours in row, column and kernel, and rows, columns and positions
as a whole have shown so far (`neighbours`). No tables are written, which is what a small network's file
is made of. A weight takes some tens of microseconds. All bytes up to the end of the tensor are the message:

    side, if rows are squares | step or codebook | message

Integers need no step; a step takes two bytes if the rest of it are zeros.
"""

from math import isqrt, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.binary import BitDecoder, BitEncoder
from rarefy.store.codebook import MOST_LEVELS, read_levels, write_levels
from rarefy.store.fields import BitReader, Cursor
from rarefy.store.keys import FLOAT
from rarefy.store.lattice import integers_of, lattice
from rarefy.store.neighbours import pictures, walk

MOST = 1 << 19
"""Values of a tensor; these take some ten seconds."""

LISTED, COARSE, SQUARES = 1, 2, 4
"""The levels are listed; two bytes of zeros at the end of a float32 step are left out; rows are squares."""

_LARGEST = 1 << 12

_ZEROS = b"\0\0"

_ALIKE = 4.0
"""Standard errors by which neighbours above each other have to be of one sign to be worth a trial."""


def encode_mixed(
    codes: NDArray[Any],
    levels: NDArray[Any],
    kind: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> tuple[int, bytes]:
    """`LISTED`, `COARSE` and `SQUARES` as they apply, and the bytes that `MixedReader` reads.

    Args:
        codes: shape (n,), each value's place among the levels, n at most `MOST`.
        levels, kind, dtype: of the codebook, as in `codebook.write_levels`.
        shape: of the tensor.
    """
    found, flags = integers_of(levels, kind, dtype), 0
    if found is not None and int(np.abs(found[1]).max()) < _LARGEST // 2:
        step, integers = found
        table = 2 * np.abs(integers) - (integers < 0)
        head = step.to_bytes(dtype.itemsize if kind == FLOAT else 0, "little")
        if len(head) == 4 and head.startswith(_ZEROS):
            flags, head = COARSE, head.removeprefix(_ZEROS)
    else:
        table = np.arange(levels.size)
        flags, head = LISTED, write_levels(levels, kind, dtype)
    symbols = table[codes]
    message = _message(symbols, shape, 0)
    side = likely_side(np.where(symbols & 1, -1, np.sign(symbols)), shape)
    if side:
        square = bytes([side]) + head + _message(symbols, shape, side)
        if len(square) < len(head) + len(message):
            return flags | SQUARES, square
    return flags, head + message


def _message(symbols: NDArray[Any], shape: tuple[int, ...], side: int) -> bytes:
    coder = BitEncoder()
    walk(coder, symbols.tolist(), pictures(shape, side))
    return coder.message()


def likely_side(signs: NDArray[Any], shape: tuple[int, ...]) -> int:
    """The side of the squares that a matrix's rows seem to consist of; 0 if of none.

    Args:
        signs: -1, 0 and 1, shape (n,).
        shape: of the tensor.
    """
    if len(shape) != 2:
        return 0
    best, chosen = _ALIKE, 0
    for side in range(2, min(isqrt(shape[1]), 255) + 1):
        if shape[1] % side**2 == 0:
            squares = signs.reshape(-1, side, side)
            products = squares[:, 1:] * squares[:, :-1]
            alike = float(products.sum()) / sqrt(max(int(np.count_nonzero(products)), 1))
            best, chosen = max((best, chosen), (alike, side))
    return chosen


class MixedReader:
    """Yields the patterns of values that `encode_mixed` wrote."""

    def __init__(
        self,
        cursor: Cursor,
        shape: tuple[int, ...],
        kind: int,
        dtype: np.dtype[Any],
        flags: int,
    ) -> None:
        """Take the values of a whole tensor, which end where the bytes end.

        Raises:
            FileError: damaged, or more values than `MOST`.
        """
        if prod(shape) > MOST:
            raise FileError(f"{prod(shape):,} values under mixed contexts")
        grid, coarse = pictures(shape, cursor.byte() if flags & SQUARES else 0), flags & COARSE
        if flags & LISTED:
            bits = BitReader(cursor)
            levels = read_levels(bits, kind, dtype, MOST_LEVELS)
            bits.close()
        elif kind == FLOAT and dtype.itemsize not in (2, 4):
            raise FileError(f"values of {dtype.name} can't be integers times a step")
        elif coarse and (kind != FLOAT or dtype.itemsize != 4):
            raise FileError(f"a step of {dtype.name} has no bytes to leave out")
        else:
            zeros = _ZEROS if coarse else b""
            step = cursor.take((dtype.itemsize if kind == FLOAT else 0) - len(zeros))
            levels = lattice(int.from_bytes(zeros + step, "little"), _LARGEST, kind, dtype)
        symbols = np.array(walk(BitDecoder(cursor, cursor.remaining), None, grid), np.int64)
        if symbols.size and int(symbols.max()) >= levels.size:
            raise FileError(f"a symbol {symbols.max()} is none of {levels.size}")
        self._values, self._place = levels.take(symbols), 0
        self.coding = "codebook+mixing"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        self._place += count
        return self._values[self._place - count : self._place]
