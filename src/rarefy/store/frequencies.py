# SPDX-License-Identifier: Apache-2.0
"""Tables of symbol frequencies: how a decoder learns the distribution in a few bytes.

Three kinds of table. *Counted*: each count rounded to a short floating-point number (a few bits of
mantissa), their codes written as differences between neighbours in exponential-Golomb code, because
histograms of weights are smooth on that logarithmic scale. *Geometric*: one parameter, for the gaps
between independent non-zeros. *Bernoulli*: one parameter, for bytes of eight independent bits.
The last two follow from integer arithmetic alone, so that every machine finds the same table.
"""

from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter
from rarefy.store.smooth import Smooth, read_smooth, smooth

TOTAL_BITS = 22
"""Tables are scaled to a sum of about 2**22; every symbol in a table keeps at least 1."""

MOST_SYMBOLS = 1 << 13
"""Largest alphabet of a table."""

_MANTISSAS = 6


def rounded_codes(counts: NDArray[Any], mantissa: int) -> NDArray[np.int64]:
    """Codes of counts rounded to `mantissa` bits below the leading one; 0 stays 0.

    Codes rise with the counts and are exact below `2**(mantissa + 1)`.
    """
    counts = np.asarray(counts, dtype=np.int64)
    return _rounded(counts, np.frexp(counts)[1].astype(np.int64), mantissa)


def _rounded(
    counts: NDArray[np.int64], lengths: NDArray[np.int64], mantissa: int
) -> NDArray[np.int64]:
    """As `rounded_codes`, from the counts' lengths in bits."""
    exponent = np.maximum(lengths - (1 + mantissa), 0)
    half = np.left_shift(1, exponent) >> 1
    return (exponent << mantissa) + ((counts + half) >> exponent)


def rounded_counts(codes: NDArray[np.int64], mantissa: int) -> NDArray[np.int64]:
    """The counts that `rounded_codes` stands for.

    Examples:
        >>> rounded_counts(rounded_codes(np.array([0, 1, 3, 100]), 1), 1).tolist()
        [0, 1, 3, 96]
    """
    exponent = np.maximum((codes >> mantissa) - 1, 0)
    return (codes - (exponent << mantissa)) << exponent


def scaled(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies in proportion to the counts, summing to about `2**TOTAL_BITS`, none below 1."""
    total = max(int(counts.sum()), 1)
    shift = max(total.bit_length() - 40, 0)
    return np.maximum(((counts >> shift) << TOTAL_BITS) // max(total >> shift, 1), 1)


def entropy(counts: NDArray[np.int64]) -> float:
    """Information of a message with this histogram, in bits (all of it, not a symbol's)."""
    used = counts[counts > 0].astype(np.float64)
    total = float(used.sum())
    return total * log2(total) - float(used @ np.log2(used)) if total else 0.0


def information(counts: NDArray[Any], frequencies: NDArray[np.int64]) -> float:
    """Bits of a message with these counts under a model with these frequencies."""
    used = counts > 0
    model = frequencies[used].astype(np.float64)
    return float(counts[used] @ (np.log2(float(frequencies.sum())) - np.log2(model)))


@dataclass(frozen=True)
class CountedTable:
    """A table of rounded counts and what it costs."""

    frequencies: NDArray[np.int64]
    bits: float  # of message and table together
    mantissa: int
    codes: Smooth

    def write(self, writer: BitWriter) -> None:
        """Append the table; `read_counted` takes it back."""
        writer.write(self.mantissa, 3)
        self.codes.write(writer)


def counted(counts: NDArray[Any]) -> CountedTable:
    """The counted table that makes message and table cheapest together.

    Args:
        counts: shape (n,), n at least 1, first and last entry above 0.
    """
    best: CountedTable | None = None
    counts = np.asarray(counts, dtype=np.int64)
    lengths = np.frexp(counts)[1].astype(np.int64)
    least, used, mantissa = entropy(counts), np.count_nonzero(counts), 0
    while mantissa < _MANTISSAS:
        rounded = _rounded(counts, lengths, mantissa)
        frequencies = scaled(rounded_counts(rounded, mantissa))
        codes, message = smooth(rounded), information(counts, frequencies)
        bits = 3 + codes.bits + message
        if best is not None and bits >= best.bits:
            break  # precision beyond this costs more than it saves
        best = CountedTable(frequencies, bits, mantissa, codes)
        # A bit more costs about a bit of each entry, and leaves a quarter of what rounding loses.
        loss = (message - least) / used
        if loss < 0.3:
            break
        mantissa += max(int(log2(2 * loss) / 2), 1)
    assert best is not None
    return best


def read_counted(reader: BitReader, symbols: int) -> NDArray[np.int64]:
    """Frequencies of a counted table with this many symbols.

    Raises:
        FileError: the table is cut short or holds impossible counts.
    """
    mantissa = reader.read(3)
    codes = read_smooth(reader, symbols)
    if int(codes.max()) >> mantissa > 40 - mantissa:
        raise FileError("a frequency table holds counts above 2**40")
    return scaled(rounded_counts(codes, mantissa))


def geometric(parameter: int, symbols: int) -> NDArray[np.int64]:
    """Frequencies of a geometric law with success probability `parameter / 2**16`.

    The last symbol stands for all longer runs and takes what is left.
    """
    tail, table = 1 << TOTAL_BITS, []
    for _ in range(symbols - 1):
        part = tail * parameter >> 16
        table.append(max(part, 1))
        tail -= part
    return np.array([*table, max(tail, 1)], dtype=np.int64)


def bernoulli(parameter: int, width: int) -> NDArray[np.int64]:
    """Frequencies of `width` independent bits, each set with probability `parameter / 2**16`."""
    unset = 65536 - parameter
    by_ones = [
        max((parameter**ones * unset ** (width - ones) << TOTAL_BITS) >> 16 * width, 1)
        for ones in range(width + 1)
    ]
    patterns = np.arange(1 << width)[:, None] >> np.arange(width) & 1
    return np.array(by_ones, dtype=np.int64)[patterns.sum(axis=1)]
