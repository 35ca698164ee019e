# SPDX-License-Identifier: Apache-2.0
"""The two forms of a tensor's values, as an encoder sees them: codes of a codebook, or planes.

Either form can give all values at once, or say which value fills much of the tensor (`common`) and
give the others alone, in any order, for the sparse layouts.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rarefy.store.adaptive import encode_mixed
from rarefy.store.codebook import find_levels, level_codes, pays, write_levels
from rarefy.store.keys import PIECE, from_keys, histogram
from rarefy.store.lattice import plan_codes
from rarefy.store.planes import plan_planes
from rarefy.store.symbols import Coded, plan_run
from rarefy.store.trellis import plan_trellis

PLANES = 4
"""Bit of a tensor's first byte: values are planes, not codes of a codebook."""


class Values(Protocol):
    """What both forms offer."""

    form: int  # `PLANES` or 0
    common: int  # the pattern that fills most of the tensor

    def marks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether another value than the common one stands at these places."""

    def plan(self, places: NDArray[np.int64] | None, coder: str) -> Coded:
        """All values, or those at `places`, in their order; none of them is the common one."""


class Codes(Values):
    """Few distinct values: a codebook, and each value's place in it."""

    form = 0

    def __init__(
        self, pattern: NDArray[Any], levels: NDArray[Any], kind: int, real: np.dtype[Any]
    ) -> None:
        """Look up all values of `pattern`, shape (n,), in `levels` (increasing keys)."""
        self._levels, self._kind, self._real = levels, kind, real
        self._codes = level_codes(pattern, levels, kind)
        self._counts = histogram(self._codes, levels.size)
        self._common = int(self._counts.argmax())
        self.common = int(from_keys(levels[self._common : self._common + 1], kind)[0])

    def marks(self, start: int, stop: int) -> NDArray[np.bool_]:
        return np.not_equal(self._codes[start:stop], self._common)

    def plan(self, places: NDArray[np.int64] | None, coder: str) -> Coded:
        levels, counts, codes = self._levels, self._counts, self._codes
        if places is not None:
            levels, counts = np.delete(levels, self._common), np.delete(counts, self._common)
            codes = codes[places]
            codes -= codes > self._common
        book = write_levels(levels, self._kind, self._real)
        run = plan_run(lambda: codes, counts, coder)
        return Coded(8 * len(book) + run.bits, lambda: [book, *run.pieces()])

    def plan_contexts(self, shape: tuple[int, ...], coder: str) -> Coded | None:
        """All values under contexts of their rows and columns, if there are few enough levels."""
        return plan_codes(self._codes, self._levels, self._kind, self._real, shape, coder)

    def plan_trellis(self, shape: tuple[int, ...], coder: str) -> Coded | None:
        """All values as indices along a trellis, if they lie along one."""
        return plan_trellis(self._codes, self._levels, self._kind, self._real, shape, coder)

    def mixed(self, shape: tuple[int, ...]) -> tuple[int, bytes]:
        """All values under mixed contexts, see `adaptive.encode_mixed`."""
        return encode_mixed(self._codes, self._levels, self._kind, self._real, shape)


class Planes(Values):
    """Many distinct values: planes of bits; the common value is zero."""

    form = PLANES
    common = 0

    def __init__(self, pattern: NDArray[Any], kind: int) -> None:
        """Stand for all values of `pattern`, shape (n,)."""
        self._pattern, self._kind = pattern, kind

    def marks(self, start: int, stop: int) -> NDArray[np.bool_]:
        return np.not_equal(self._pattern[start:stop], 0)

    def plan(self, places: NDArray[np.int64] | None, coder: str) -> Coded:
        pattern = self._pattern if places is None else self._pattern[places]
        return plan_planes(pattern, coder, self._kind)


def others(values: Values, size: int, count: int) -> NDArray[Any]:
    """The `count` places of a tensor of `size` values where another than the common one stands.

    They increase, and are int32 where that is enough: there may be nearly as many as values.
    """
    places, end = np.empty(count, dtype=np.int32 if size < 1 << 31 else np.int64), 0
    for start in range(0, size, PIECE):
        found = np.flatnonzero(values.marks(start, start + PIECE))
        begin, end = end, end + found.size
        places[begin:end] = found + start
    return places


def count_others(values: Values, size: int) -> int:
    """In how many places another value than the common one stands."""
    starts = range(0, size, PIECE)
    return sum(int(np.count_nonzero(values.marks(s, s + PIECE))) for s in starts)


def values_of(pattern: NDArray[Any], kind: int, real: np.dtype[Any]) -> Values:
    """The form that suits an array of patterns, shape (n,), n > 0."""
    levels = find_levels(pattern, kind)
    if levels is None or not pays(levels, pattern.size, kind, real):
        return Planes(pattern, kind)
    return Codes(pattern, levels, kind, real)
