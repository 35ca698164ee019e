# SPDX-License-Identifier: Apache-2.0
"""Codes along a trellis: on which half of a grid a weight stands follows from those before it.

M. Marcellin, T. Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", 1990, with two
scalar quantisers (H. Schwarz et al., "Hybrid video coding with trellis-coded quantization", DCC 2019): one
has the even multiples of the step, the other the odd ones and zero. Four states say which is used; the
parity of each index leads to the next state. So an index chooses among values two steps apart, and yet
a row of them comes closer to what is wanted than rounding to a grid of the same bits.
Rows begin in state 0. Whether a tensor of integers times a step lies along the trellis is seen from
its values, so nothing has to be said; then its indices are coded under contexts.

    step | largest index | indices, see `contexts`
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.codebook import multiples
from rarefy.store.compiled import loops
from rarefy.store.contexts import MOST_SYMBOLS, ContextReader, plan_contexts
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.keys import FLOAT, SIGNED
from rarefy.store.lattice import behind, integers_of, read_reach, write_reach
from rarefy.store.symbols import Coded

NEXT = np.array([[0, 2], [2, 0], [1, 3], [3, 1]], dtype=np.uint8)
"""The next state, by state and parity of the index; states 2 and 3 use the odd multiples."""

_PIECE = 1 << 20
_LOOK = (256, 48)  # rows and columns that are looked at first


def indices_of(integers: NDArray[Any]) -> NDArray[Any] | None:
    """The index of every integer, like them (rows, n), or None if they do not lie along the trellis.

    Args:
        integers: multiples of the step, signed, shape (rows, n).
    """
    indices = (integers + (integers > 0)) >> 1  # half the integer, rounded away from zero
    wrong = (integers ^ _odd(indices.astype(np.uint8))) & (integers != 0)
    return None if (wrong & 1).any() else indices


def integers_along(indices: NDArray[Any]) -> NDArray[Any]:
    """Undo `indices_of`, shape (rows, n)."""
    return 2 * indices - _odd(indices.astype(np.uint8)) * np.sign(indices)


def _odd(indices: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Whether the odd multiples are used, 0 or 1, at each place of indices (rows, n) that say parity.

    They are used where an odd number of the indices one, three, five, … places before is odd.
    """
    odd = np.zeros(indices.shape, dtype=np.uint8)
    for start in (0, 1):
        np.cumsum(indices[:, start:-1:2], axis=1, dtype=np.uint8, out=odd[:, start + 1 :: 2])
    odd &= 1
    return odd.view(np.int8)


def plan_trellis(
    codes: NDArray[Any],
    levels: NDArray[Any],
    kind: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    coder: str,
) -> Coded | None:
    """Plan codes as indices along a trellis, or None if they are none; `TrellisReader` reads them.

    Args:
        codes: shape (n,), each value's place among the levels.
        levels, kind, dtype: of the codebook, as in `codebook.write_levels`.
        shape: of the tensor; a row is what its first axis counts.
        coder: as in `symbols`.
    """
    if kind not in (FLOAT, SIGNED) or len(shape) < 2 or levels.size < 4:
        return None
    found = integers_of(levels, kind, dtype)
    if found is None or int(np.abs(found[1]).max()) >= MOST_SYMBOLS:
        return None
    step, integers = found[0], found[1].astype(np.int16)
    placed = codes.reshape(shape[0], -1)
    if indices_of(integers[placed[: _LOOK[0], : _LOOK[1]]]) is None:
        return None
    parts = []
    for rows in _rows(placed.shape):
        part = indices_of(integers[placed[rows]])
        if part is None:
            return None
        parts.append(((2 * np.abs(part)) - (part < 0)).astype(np.uint16))
    symbols = np.concatenate(parts).reshape(-1)
    largest = int(symbols.max()) + 1 >> 1
    if 2 * largest >= MOST_SYMBOLS:
        return None
    writer = BitWriter()
    write_reach(writer, step, largest, kind, dtype)
    run = plan_contexts(symbols, 2 * largest + 1, True, shape, coder, always=True)
    return behind(writer.to_bytes(), run)


class TrellisReader:
    """Yields the patterns of values that `plan_trellis` wrote; holds a few megabytes of them."""

    def __init__(
        self, cursor: Cursor, shape: tuple[int, ...], kind: int, dtype: np.dtype[Any]
    ) -> None:
        """Take the values of a whole tensor from the cursor.

        Raises:
            FileError: damaged, or a tensor that has no rows.
        """
        if kind not in (FLOAT, SIGNED) or dtype.itemsize not in (2, 4) or len(shape) < 2:
            raise FileError(f"a tensor of {dtype.name} and shape {shape} has no trellis")
        bits = BitReader(cursor)
        step, largest = read_reach(bits, kind, dtype)
        bits.close()
        self._codes = ContextReader(cursor, 2 * largest + 1, shape)
        self._values = _values(step, largest, kind, dtype)
        self._width = int(np.prod(shape[1:]))
        self._rows = iter(_rows((shape[0], self._width)))
        self._ready = np.zeros(0, dtype=f"u{dtype.itemsize}")
        self.coding = f"codebook+trellis+{self._codes.coding}"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` patterns."""
        while self._ready.size < count:
            rows = next(self._rows)
            symbols = self._codes.read((rows.stop - rows.start) * self._width)
            fast = loops()
            if fast is not None:
                values = fast.along(symbols, self._width, NEXT, self._values)
            else:
                odd = _odd((symbols + 1 >> 1).astype(np.uint8).reshape(-1, self._width))
                values = self._values.take(2 * symbols + odd.reshape(-1))
            self._ready = np.concatenate([self._ready, values])
        piece, self._ready = self._ready[:count], self._ready[count:]
        return piece


def _values(step: int, largest: int, kind: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Patterns of the values of the symbols 0, -1, 1, -2, 2, …: each with even, with odd multiples."""
    symbols = np.arange(2 * largest + 1)
    indices = np.where(symbols & 1, -(symbols + 1 >> 1), symbols >> 1)
    integers = (2 * indices[:, None] - np.sign(indices)[:, None] * np.arange(2)).reshape(-1)
    if kind == FLOAT:
        return multiples(step, 2 * np.abs(integers) + (integers < 0), dtype)
    return integers.astype(dtype).view(f"u{dtype.itemsize}")


def _rows(shape: tuple[int, ...]) -> list[slice]:
    """Rows that are looked at together."""
    each = max(1, _PIECE // max(shape[1], 1))
    return [slice(start, min(start + each, shape[0])) for start in range(0, shape[0], each)]
