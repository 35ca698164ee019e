# SPDX-License-Identifier: Apache-2.0
"""Tensors of few levels bit by bit under mixed contexts: slow, but nothing is told in advance.

Whether a weight is zero, its sign, whether its magnitude goes on beyond 1, 2, …: each is a decision
whose chance is mixed from what neighbours in row, column and kernel, and rows, columns and positions
as a whole have shown so far. No tables are written, which is what a small network's file is made of.
A weight takes some tens of microseconds. All bytes up to the end of the tensor are the message:

    step (nothing for integers, two bytes if the rest are zeros) or codebook | message
"""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.binary import ONE, BitCoder, BitDecoder, BitEncoder
from rarefy.store.codebook import MOST_LEVELS, read_levels, write_levels
from rarefy.store.fields import BitReader, Cursor
from rarefy.store.keys import FLOAT
from rarefy.store.lattice import integers_of, lattice
from rarefy.store.mixing import Mixer
from rarefy.store.scales import grid_shape

MOST = 1 << 19
"""Values of a tensor; these take some ten seconds."""

_LARGEST = 1 << 12

_ZEROS = b"\0\0"

UNARY = 20
"""Magnitudes below it are told step by step, what is beyond as an exponential-Golomb code."""


def encode_mixed(
    codes: NDArray[Any],
    levels: NDArray[Any],
    kind: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> tuple[bool, bool, bytes]:
    """Whether levels are listed, whether their step is coarse, and the bytes that `MixedReader` reads.

    Args:
        codes: shape (n,), each value's place among the levels, n at most `MOST`.
        levels, kind, dtype: of the codebook, as in `codebook.write_levels`.
        shape: of the tensor.
    """
    found, coarse = integers_of(levels, kind, dtype), False
    if found is not None and int(np.abs(found[1]).max()) < _LARGEST // 2:
        step, integers = found
        table = 2 * np.abs(integers) - (integers < 0)
        head = step.to_bytes(dtype.itemsize if kind == FLOAT else 0, "little")
        coarse = len(head) == 4 and head.startswith(_ZEROS)
        head = head.removeprefix(_ZEROS) if coarse else head
    else:
        found, table = None, np.arange(levels.size)
        head = write_levels(levels, kind, dtype)
    coder = BitEncoder()
    _walk(coder, table[codes].tolist(), grid_shape(shape))
    return found is None, coarse, head + coder.message()


class MixedReader:
    """Yields the patterns of values that `encode_mixed` wrote."""

    def __init__(
        self,
        cursor: Cursor,
        shape: tuple[int, ...],
        kind: int,
        dtype: np.dtype[Any],
        *,
        listed: bool,
        coarse: bool,
    ) -> None:
        """Take the values of a whole tensor, which end where the bytes end.

        Raises:
            FileError: damaged, or more values than `MOST`.
        """
        grid = grid_shape(shape)
        if grid[0] * grid[1] * grid[2] > MOST:
            raise FileError(f"{grid[0] * grid[1] * grid[2]:,} values under mixed contexts")
        if listed:
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
        symbols = np.array(_walk(BitDecoder(cursor, cursor.remaining), None, grid), np.int64)
        if symbols.size and int(symbols.max()) >= levels.size:
            raise FileError(f"a symbol {symbols.max()} is none of {levels.size}")
        self._values, self._place = levels.take(symbols), 0
        self.coding = "codebook+mixing"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        self._place += count
        return self._values[self._place - count : self._place]


def _walk(coder: BitCoder, given: list[int] | None, shape: tuple[int, int, int]) -> list[int]:
    """Code all symbols in their order, or read them where none are given."""
    rows, columns, positions = shape
    width = columns * positions
    found: list[int] = []
    sizes = [0] * (2 * width + 2)  # magnitudes, with zeros in front of the first row
    offset, model = len(sizes), _Model(shape)
    for place in product(range(rows), range(columns), range(positions)):
        here = len(sizes)
        edge = offset + place[0] * width
        near = (
            sizes[here - 1] if here > edge else 0,
            sizes[here - 2] if here > edge + 1 else 0,
            sizes[here - width],
            sizes[here - 2 * width],
        )
        symbol = model.code(coder, given[len(found)] if given else 0, place, near, found)
        found.append(symbol)
        sizes.append(symbol + 1 >> 1)
    return found


class _Model:
    """All that has been learned of one tensor so far."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._zero, self._sign, self._more = Mixer(8), Mixer(4), Mixer(6)
        self._width = shape[1] * shape[2]
        self._sums = [[0] * size for size in shape]
        self._counts = [[0] * size for size in shape]

    def code(
        self,
        coder: BitCoder,
        symbol: int,
        place: tuple[int, int, int],
        near: tuple[int, int, int, int],
        before: list[int],
    ) -> int:
        """Code one symbol and remember it."""
        left, further, above, higher = (min(size, 2) for size in near)
        row, column, position = (
            _level(sums[at], counts[at])
            for sums, counts, at in zip(self._sums, self._counts, place, strict=True)
        )
        local = left + 3 * above
        around = (
            0,
            row,
            column,
            local + 9 * further + 27 * higher,
            32 * row + column,
            position + 32 * place[2],
            place[0],
            place[1],
        )
        size = 0
        if self._zero.code(coder, int(symbol > 0), around):
            size = self._size(coder, symbol + 1 >> 1, (row, column, local))
            size = 2 * size - self._negative(coder, symbol & 1, place, before)
        for sums, counts, at in zip(self._sums, self._counts, place, strict=True):
            sums[at] += size + 1 >> 1
            counts[at] += 1
        return size

    def _size(self, coder: BitCoder, size: int, scales: tuple[int, int, int]) -> int:
        row, column, local = scales
        reached = 1
        while reached < UNARY:
            start = min(reached, 7)
            around = (
                reached,
                start + 8 * row,
                start + 8 * column,
                start + 8 * local,
                start + 8 * (row + column),
                start + 8 * (32 * row + column),
            )
            if not self._more.code(coder, int(size > reached), around):
                return reached
            reached += 1
        return reached + _golomb(coder, size - reached)

    def _negative(
        self, coder: BitCoder, negative: int, place: tuple[int, int, int], before: list[int]
    ) -> int:
        here = len(before)
        left = _direction(before, here - 1) if here % self._width else 0
        above = _direction(before, here - self._width)
        around = (0, left + 3 * above, 2 * place[0] + 1, 2 * place[1] + 1)
        return self._sign.code(coder, negative, around)


def _level(total: int, count: int) -> int:
    """How large magnitudes have been: 0 for unknown, then half octaves of their mean."""
    if not count:
        return 0
    mean = (8 * total + 4) * 64 // (count + 1)
    length = mean.bit_length()
    half = mean >> max(length - 2, 0) & 1
    return min(2 * length + half, 31)


def _direction(symbols: list[int], at: int) -> int:
    """0 for a zero or none, 1 for a negative, 2 for a positive integer."""
    return 0 if at < 0 or not symbols[at] else 1 if symbols[at] & 1 else 2


def _golomb(coder: BitCoder, value: int) -> int:
    """An integer from 0 on, every bit as likely as not."""
    length = 0
    while length < 24 and coder.code(int((value + 1) >> (length + 1) > 0), ONE // 2):
        length += 1
    found = 1
    for place in reversed(range(length)):
        found = 2 * found + coder.code((value + 1) >> place & 1, ONE // 2)
    return found - 1
