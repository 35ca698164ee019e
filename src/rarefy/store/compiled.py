# SPDX-License-Identifier: Apache-2.0
"""Loops of the decoder that numba compiles, where it is installed (`rarefy[fast]`) and worth its loading.

Every loop does what other code of this package does with numpy or `constriction` at a third of the
speed, to the same bit; it is plain Python over arrays. numba keeps what it compiled beside this file,
or in the user's folder of caches, so only the first process on a machine waits for the compiler.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WORTH = 1 << 24
"""Bytes of messages behind which the time that was saved exceeds that of loading numba."""

PRECISION = 24
"""Bits of a chance in a message of `ans`."""

_BUCKETS = 10
_read = 0


def decode(
    words: NDArray[np.uint32],
    place: int,
    state: Any,
    bounds: NDArray[np.uint32],
    out: NDArray[np.int32],
) -> tuple[int, Any]:
    """Fill `out` with the next symbols of an `ans` message; returns the place and state behind them.

    Args:
        words: of the message.
        place: how many words are still to be read; they are taken from the end.
        state: uint64.
        bounds: where the interval of each symbol begins, and 2**24 behind them.
    """
    # What begins each 1,024th of all chances: a symbol, its interval's begin and size.
    first = np.empty(1 << _BUCKETS, np.uint16)
    begins, sizes = np.empty(first.size, np.uint32), np.empty(first.size, np.uint32)
    symbol: Any = 0
    for bucket in range(first.size):
        while bounds[symbol + 1] <= bucket << PRECISION - _BUCKETS:
            symbol += 1
        first[bucket], begins[bucket] = symbol, bounds[symbol]
        sizes[bucket] = bounds[symbol + 1] - bounds[symbol]
    mask, shift = np.uint64((1 << PRECISION) - 1), np.uint64(PRECISION)
    short, word = np.uint64(PRECISION - _BUCKETS), np.uint64(32)
    for index in range(out.size):
        chance = state & mask
        bucket = chance >> short
        symbol, size = np.int64(first[bucket]), np.uint64(sizes[bucket])
        offset = chance - np.uint64(begins[bucket])
        while offset >= size:
            offset -= size
            symbol += 1
            size = np.uint64(bounds[symbol + 1]) - np.uint64(bounds[symbol])
        state = (state >> shift) * size + offset
        if state >> word == 0 and place > 0:
            place -= 1
            state = state << word | np.uint64(words[place])
        out[index] = symbol
    return place, state


def counted(
    rows: NDArray[np.int8],
    columns: NDArray[np.int8],
    positions: NDArray[np.int8],
    low: int,
    contexts: int,
) -> NDArray[np.int64]:
    """How many weights stand in each context, shape (contexts,); see `contexts.context_of`."""
    counts = np.zeros(contexts, np.int64)
    for row in rows:
        for column in columns:
            for position in positions:
                counts[min(max(row + column + position - low, 0), contexts - 1)] += 1
    return counts


def placed(
    coded: NDArray[np.int32],
    starts: NDArray[np.int64],
    rows: NDArray[np.int8],
    columns: NDArray[np.int8],
    positions: NDArray[np.int8],
    low: int,
) -> NDArray[np.int32]:
    """Symbols in the order of the weights, that stood context by context.

    Args:
        coded: the symbols, shape (n,).
        starts: where those of each context begin, shape (contexts,); moved behind them.
    """
    out = np.empty(coded.size, np.int32)
    index = 0
    for row in rows:
        for column in columns:
            for position in positions:
                context = min(max(row + column + position - low, 0), starts.size - 1)
                out[index] = coded[starts[context]]
                starts[context] += 1
                index += 1
    return out


def along(
    symbols: NDArray[np.int32], width: int, next_state: NDArray[np.uint8], values: NDArray[Any]
) -> NDArray[Any]:
    """The values of symbols along a trellis, see `trellis`.

    Args:
        symbols: shape (n,), rows of `width`.
        next_state: by state and parity of the index, shape (4, 2).
        values: by symbol, of even and of odd multiples in turn.
    """
    out = np.empty(symbols.size, values.dtype)
    for start in range(0, symbols.size, width):
        state = 0
        for index in range(start, start + width):
            symbol = symbols[index]
            out[index] = values[2 * symbol + (state >> 1)]
            state = next_state[state, symbol + 1 >> 1 & 1]
    return out


def shares(chances: NDArray[np.int64], whole: int, sizes: NDArray[np.int64]) -> None:
    """Fill each row of `sizes` with what its chances to stop take of `whole`, see `ladder`.

    Args:
        chances: in 2**24ths, shape (contexts, length); the last one goes on.
        sizes: shape (contexts, magnitudes); the last magnitude takes what is left.
    """
    for row in range(sizes.shape[0]):
        left = whole
        for place in range(sizes.shape[1] - 1):
            sizes[row, place] = left * chances[row, min(place, chances.shape[1] - 1)] >> 24
            left -= sizes[row, place]
        sizes[row, -1] = left


def golombs(
    data: NDArray[np.uint8], place: int, order: int, widest: int, out: NDArray[np.int64]
) -> tuple[int, int]:
    """Fill `out` with exponential-Golomb codes, see `golomb`; returns how many, and the bit behind them.

    Args:
        place: of the first bit.
        widest: longest code that is read, in bits behind its zeros.
    """
    limit = 8 * data.size
    for index in range(out.size):
        one = place
        while one < limit and data[one >> 3] >> (7 - (one & 7)) & 1 == 0:
            one += 1
        end = 2 * one - place + order + 1
        if end > limit or end - one > widest:
            return index, place
        value = 0
        for bit in range(one, end):
            value = value << 1 | data[bit >> 3] >> (7 - (bit & 7)) & 1
        out[index] = value - (1 << order)
        place = end
    return out.size, place


class Loops(NamedTuple):
    """The functions of this file, compiled."""

    decode: Callable[..., Any]
    counted: Callable[..., Any]
    placed: Callable[..., Any]
    along: Callable[..., Any]
    shares: Callable[..., Any]
    golombs: Callable[..., Any]


@cache
def load() -> Loops | None:
    """Compile the loops, or find what was compiled before; None where there is no numba that fits numpy."""
    try:
        from numba import njit
    except ImportError:
        return None

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, cache=True)(function)
        except RuntimeError:  # no folder that it could be kept in can be written
            return njit(nogil=True)(function)

    return Loops(*(compiled(loop) for loop in (decode, counted, placed, along, shares, golombs)))


def loops(size: int = 0) -> Loops | None:
    """The compiled loops once they pay and where numba is installed, else None.

    Args:
        size: bytes of a message that is about to be read.
    """
    global _read
    _read += size
    return load() if _read >= WORTH else None
