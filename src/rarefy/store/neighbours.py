# SPDX-License-Identifier: Apache-2.0
"""The symbols of a tensor one after the other, each under what its neighbours were.

Weights of a kernel are a small picture: a weight resembles those to its left and above it, in size and in
sign. The same holds for the rows of a linear layer that looks at a picture, or at the maps of a convolution.
A neighbour beyond the picture's edge is told apart from a zero.
"""

from itertools import product
from typing import NamedTuple

from rarefy.errors import FileError
from rarefy.store.binary import ONE, BitCoder
from rarefy.store.mixing import Mixer
from rarefy.store.scales import grid_shape

UNARY = 20
"""Magnitudes below it are told step by step, what is beyond as an exponential-Golomb code."""


class Pictures(NamedTuple):
    """How the values of a tensor lie."""

    rows: int
    columns: int  # pictures in a row
    positions: int  # of a picture, line after line
    width: int  # of a line


def pictures(shape: tuple[int, ...], side: int = 0) -> Pictures:
    """The pictures that a tensor of this shape consists of.

    Args:
        shape: of the tensor; where it has three axes or more, a picture has those behind the second.
        side: of the squares that the rows of a matrix consist of; 0: each row is one line.

    Raises:
        FileError: such squares don't fill the rows, or the tensor is no matrix.

    Examples:
        >>> pictures((64, 32, 3, 5))
        Pictures(rows=64, columns=32, positions=15, width=5)
        >>> pictures((90, 784), side=28)
        Pictures(rows=90, columns=1, positions=784, width=28)
        >>> pictures((90, 784))
        Pictures(rows=90, columns=784, positions=1, width=784)
    """
    rows, columns, positions = grid_shape(shape)
    if side:
        if len(shape) != 2 or columns % side**2:
            raise FileError(f"rows of {columns} values are no squares of {side} by {side}")
        return Pictures(rows, columns // side**2, side**2, side)
    return Pictures(rows, columns, positions, shape[-1] if len(shape) > 2 else columns)


def walk(coder: BitCoder, given: list[int] | None, grid: Pictures) -> list[int]:
    """Code all symbols in their order, or read them where none are given.

    Args:
        coder: writes or reads.
        given: twice the magnitude of every value, less 1 if it is negative.
        grid: how the values lie.
    """
    rows, columns, positions, width = grid
    length = columns * positions
    values = [0] * (2 * length + 2)  # zeros in front of the first row
    found: list[int] = []
    model = _Model(grid)
    places = product(range(rows), range(columns), range(positions))
    for here, place in enumerate(places, len(values)):
        along = place[1] * positions + place[2]
        near = _Near(
            values[here - 1] if along else 0,
            values[here - 2] if along > 1 else 0,
            values[here - length],
            values[here - 2 * length],
            values[here - 1] if along % width else None,
            values[here - width] if place[2] >= width else None,
        )
        symbol = model.code(coder, given[len(found)] if given else 0, place, near)
        found.append(symbol)
        values.append(-(symbol + 1 >> 1) if symbol & 1 else symbol >> 1)
    return found


class _Near(NamedTuple):
    """Values around a place; 0 where there are none."""

    before: int  # in the row
    further: int
    last: int  # at the same place of the row before
    earlier: int
    left: int | None  # in the picture; None beyond its edge
    upper: int | None


class _Model:
    """All that has been learned of one tensor so far."""

    def __init__(self, grid: Pictures) -> None:
        self._zero, self._sign, self._more = Mixer(10), Mixer(7), Mixer(7)
        self._sums = [[0] * size for size in grid[:3]]
        self._counts = [[0] * size for size in grid[:3]]

    def code(self, coder: BitCoder, symbol: int, place: tuple[int, int, int], near: _Near) -> int:
        """Code one symbol and remember it."""
        row, column, position = (
            _level(sums[at], counts[at])
            for sums, counts, at in zip(self._sums, self._counts, place, strict=True)
        )
        before, last = _size(near.before), _size(near.last)
        left = 3 if near.left is None else before
        upper = 3 if near.upper is None else _size(near.upper)
        around = (
            0,
            row,
            column,
            left + 4 * last + 16 * _size(near.further) + 64 * _size(near.earlier),
            left + 4 * last + 16 * upper,
            32 * row + column,
            position + 32 * place[2],
            place[0],
            place[1],
            left + 4 * upper + 16 * place[0],
        )
        value = 0
        if self._zero.code(coder, int(symbol > 0), around):
            sign = self._negative(coder, symbol & 1, place, near)
            near_sum = max(min((near.left or 0) + (near.upper or 0), 6), -6) + 6
            known = (0, row, place[0], place[1], near_sum, 2 * column, 2 * (before + 3 * last))
            value = self._magnitude(coder, symbol + 1 >> 1, [2 * c + sign for c in known])
            symbol = 2 * value - sign
        for sums, counts, at in zip(self._sums, self._counts, place, strict=True):
            sums[at] += value
            counts[at] += 1
        return symbol if value else 0

    def _negative(
        self, coder: BitCoder, negative: int, place: tuple[int, int, int], near: _Near
    ) -> int:
        left, upper = near.left or 0, near.upper or 0
        beside, over = _direction(left), _direction(upper)
        last = _direction(near.last)
        around = (
            0,
            place[0],
            place[1],
            beside + 3 * last,
            beside + 3 * last + 9 * over,
            beside + 3 * over + 9 * place[0],
            max(min(left, 2), -2) + max(min(upper, 2), -2),
        )
        return self._sign.code(coder, negative, around)

    def _magnitude(self, coder: BitCoder, size: int, known: list[int]) -> int:
        for reached in range(1, UNARY):
            around = [reached + 32 * context for context in known]
            if not self._more.code(coder, int(size > reached), around):
                return reached
        return UNARY + _golomb(coder, size - UNARY)


def _size(value: int) -> int:
    """The magnitude, 2 for all beyond."""
    return min(abs(value), 2)


def _level(total: int, count: int) -> int:
    """How large magnitudes have been: 0 for unknown, then half octaves of their mean."""
    if not count:
        return 0
    mean = (8 * total + 4) * 64 // (count + 1)
    length = mean.bit_length()
    half = mean >> max(length - 2, 0) & 1
    return min(2 * length + half, 31)


def _direction(value: int) -> int:
    """0 for a zero, 1 for a negative, 2 for a positive integer."""
    return 0 if not value else 1 if value < 0 else 2


def _golomb(coder: BitCoder, value: int) -> int:
    """An integer from 0 on, every bit as likely as not."""
    length = 0
    while length < 24 and coder.code(int((value + 1) >> (length + 1) > 0), ONE // 2):
        length += 1
    found = 1
    for place in reversed(range(length)):
        found = 2 * found + coder.code((value + 1) >> place & 1, ONE // 2)
    return found - 1
