# SPDX-License-Identifier: Apache-2.0
"""Tables of the symbols in several contexts: one ladder of magnitudes for all, or counts for each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store import frequencies
from rarefy.store.fields import BitReader, BitWriter
from rarefy.store.ladder import (
    Ladder,
    fit_ladder,
    ladder_frequencies,
    lengths,
    read_ladder,
)


@dataclass(frozen=True)
class Tables:
    """How the symbols of all contexts are distributed: by one ladder, or by a table each."""

    ladder: Ladder | None
    counted: list[tuple[int, frequencies.CountedTable | None]]
    bits: float  # of tables and symbols

    def frequencies(self, symbols: int) -> list[NDArray[np.int64]]:
        """As `read_tables` will find them."""
        if self.ladder is not None:
            return list(ladder_frequencies(self.ladder.rungs, symbols // 2 + 1))
        one = np.ones(1, dtype=np.int64)
        return [
            np.concatenate([np.zeros(first, np.int64), table.frequencies if table else one])
            for first, table in self.counted
        ]

    def write(self, writer: BitWriter) -> None:
        """Append the tables; `read_tables` takes them back."""
        writer.write(int(self.ladder is not None), 1)
        if self.ladder is not None:
            self.ladder.write(writer)
        for first, table in self.counted:
            writer.golomb(first)
            writer.golomb(0 if table is None else table.frequencies.size - 1, 2)
            if table is not None:
                table.write(writer)


def best_tables(counts: NDArray[np.int64], folded: bool) -> Tables:
    """The cheapest tables for a histogram of symbols in contexts, shape (contexts, symbols)."""
    ladder = cheapest_ladder(counts) if folded else None
    left = conditional_entropy(counts) + 3.0 * np.count_nonzero(counts)
    counted: list[tuple[int, frequencies.CountedTable | None]] = []
    bits = 0.0
    for row in counts:
        if ladder is not None and bits + left >= (0.999 if not counted else 1) * ladder[1]:
            return Tables(ladder[0], [], ladder[1])
        left -= conditional_entropy(row[None]) + 3.0 * np.count_nonzero(row)
        used = np.flatnonzero(row)
        first, last = (int(used[0]), int(used[-1])) if used.size else (0, 0)
        table = frequencies.counted(row[first : last + 1]) if last > first else None
        bits += (table.bits if table else 0) + 2 * first.bit_length() + 8
        counted.append((first, table))
    if ladder is not None and bits >= ladder[1]:
        return Tables(ladder[0], [], ladder[1])
    return Tables(None, counted, bits)


def cheapest_ladder(counts: NDArray[np.int64]) -> tuple[Ladder, float]:
    """The ladder for symbols 0, -1, 1, -2, 2, … and the bits of it and them together."""
    sizes = np.concatenate([counts[:, :1], counts[:, 1::2] + counts[:, 2::2]], axis=1)
    signs, best, worse = float(sizes[:, 1:].sum()), None, 0
    for length in lengths(sizes.shape[1]):
        ladder = fit_ladder(sizes, length)
        if best is None or ladder.bits + ladder.information < best[1]:
            best, worse = (ladder, ladder.bits + ladder.information), 0
        else:
            worse += 1
        if worse == 3:
            break
    assert best is not None
    return best[0], best[1] + signs


def read_tables(reader: BitReader, contexts: int, symbols: int) -> list[NDArray[np.int64]]:
    """Frequencies of every context, shape (symbols,); one entry alone stands for its place.

    Raises:
        FileError: damaged.
    """
    if reader.read(1):
        if symbols % 2 == 0:
            raise FileError("a ladder of magnitudes needs a code for both signs")
        rungs = read_ladder(reader, contexts)
        return list(ladder_frequencies(rungs, symbols // 2 + 1))
    tables = []
    for _ in range(contexts):
        first, size = reader.golomb(), reader.golomb(2) + 1
        if first + size > symbols:
            raise FileError(f"a table reaches symbol {first + size} of {symbols}")
        table = frequencies.read_counted(reader, size) if size > 1 else np.ones(1, dtype=np.int64)
        tables.append(np.concatenate([np.zeros(first, dtype=np.int64), table]))
    return tables


def conditional_entropy(counts: NDArray[np.int64]) -> float:
    """Bits of all symbols under the distribution of their context."""
    totals = counts.sum(axis=1)
    used, whole = counts[counts > 0].astype(float), totals[totals > 0].astype(float)
    return float(whole @ np.log2(whole) - used @ np.log2(used))
