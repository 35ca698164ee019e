# SPDX-License-Identifier: Apache-2.0
"""Sequences that change little from one entry to the next: logarithmic counts, code lengths.

Differences between neighbours in exponential-Golomb code of the order that suits them. Where most
of them are zero (a histogram with wide gaps), a run of zeros is one zero and the length of the rest
of the run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter

LARGEST = 1 << 40
"""Entries stay below this."""

_LONG = 32


@dataclass(frozen=True)
class _Codes:
    """Integers in one exponential-Golomb order, and the bits that they take."""

    values: NDArray[np.int64]
    order: int
    bits: float

    def write(self, writer: BitWriter) -> None:
        writer.write(self.order, 3)
        writer.golombs(self.values.tolist(), self.order)


@dataclass(frozen=True)
class Smooth:
    """A sequence ready to be written; `read_smooth` takes it back."""

    steps: _Codes
    runs: _Codes | None

    @property
    def bits(self) -> float:
        """Bits that `write` appends."""
        if self.runs is None:
            return 1 + self.steps.bits
        return 1 + self.steps.bits + self.runs.bits + _number_bits(self.steps.values.size)

    def write(self, writer: BitWriter) -> None:
        """Append the sequence."""
        writer.write(int(self.runs is not None), 1)
        if self.runs is not None:
            writer.number(self.steps.values.size)
        self.steps.write(writer)
        if self.runs is not None:
            self.runs.write(writer)


def smooth(values: NDArray[Any]) -> Smooth:
    """Plan a sequence of non-negative integers below `LARGEST`, shape (n,), n > 0."""
    difference = np.array(values, dtype=np.int64)
    difference[1:] -= values[:-1]
    steps = (difference << 1) ^ (difference >> 63)  # 0, -1, 1, -2, … become 0, 1, 2, 3, …
    plain = Smooth(_codes(steps), None)
    if steps.size < _LONG or 2 * int(np.count_nonzero(steps)) > steps.size:
        return plain
    zero = steps == 0
    kept = ~zero
    kept[1:] |= ~zero[:-1]
    kept[0] = True
    places = np.flatnonzero(kept)
    lengths = np.concatenate([places[1:], [steps.size]]) - places
    tokens = steps[kept]
    short = Smooth(_codes(tokens), _codes(lengths[tokens == 0] - 1))
    return min(plain, short, key=lambda way: way.bits)


def read_smooth(reader: BitReader, count: int) -> NDArray[np.int64]:
    """The sequence of `count` > 0 entries at the reader.

    Raises:
        FileError: it is cut short, has another length or leaves its range.
    """
    if reader.read(1):
        tokens = _read(reader, reader.number(count))
        zero = tokens == 0
        lengths = np.ones(tokens.size, dtype=np.int64)
        lengths[zero] += np.minimum(_read(reader, int(np.count_nonzero(zero))), count)
        if int(lengths.sum()) != count:
            raise FileError(f"a table has {int(lengths.sum())} entries instead of {count}")
        steps = np.repeat(tokens, lengths)
    else:
        steps = _read(reader, count)
    values = np.cumsum(np.where(steps & 1, -(steps + 1 >> 1), steps >> 1))
    if values.min() < 0 or values.max() >= LARGEST:
        raise FileError("a table leaves its range")
    return values


def _read(reader: BitReader, count: int) -> NDArray[np.int64]:
    values = reader.golombs(count, reader.read(3))
    if max(values, default=0) >= 2 * LARGEST:
        raise FileError("a table leaves its range")
    return np.array(values, dtype=np.int64)


def _codes(values: NDArray[np.int64]) -> _Codes:
    """The values in their best order."""

    def bits(order: int) -> float:
        lengths = np.frexp(values + (1 << order))[1]
        return float(2 * np.add.reduce(lengths) - (1 + order) * values.size)

    guess = min(int(np.add.reduce(values) / values.size + 1).bit_length() - 1, 7)
    cost, order = min((bits(order), order) for order in {max(guess - 1, 0), guess})
    return _Codes(values, order, 3 + cost)


def _number_bits(value: int) -> int:
    return 6 + max(value.bit_length() - 1, 0)
