# SPDX-License-Identifier: Apache-2.0
"""Distributions of magnitudes, told by how likely a magnitude is the last one that is reached.

For each magnitude m the chance to stop there instead of going on, on a ladder of odds whose rungs
are 5 : 4 apart; beyond the last rung given all chances are the same, and both signs are equally
likely. Rungs of neighbouring contexts are alike, so they are written as differences of differences.
All arithmetic is in integers, so that every machine finds the same frequencies.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.compiled import loops
from rarefy.store.fields import BitReader, BitWriter, unzigzag
from rarefy.store.frequencies import TOTAL_BITS

RUNGS = 96
"""The ladder goes so many steps of 5 : 4 up and down from even odds."""

_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 11, 16, 24, 36, 54, 80, 128)


def _chances() -> NDArray[np.int64]:
    """Chance to stop, in 2**24ths, of each rung from -RUNGS to RUNGS."""
    odds, above = 1 << 60, []
    for _ in range(RUNGS):
        odds = odds * 5 >> 2
        above.append((odds << 24) // (odds + (1 << 60)))
    below = [(1 << 24) - chance for chance in reversed(above)]
    return np.array([*below, 1 << 23, *above], dtype=np.int64)


_CHANCES = _chances()


@dataclass(frozen=True)
class Ladder:
    """Rungs of every context, shape (contexts, length), and the bits that they take."""

    rungs: NDArray[np.int64]
    order: int
    bits: int
    information: float  # of the magnitudes that it was fitted to, in bits

    def write(self, writer: BitWriter) -> None:
        """Append the rungs; `read_ladder` takes them back."""
        writer.golomb(_LENGTHS.index(self.rungs.shape[1]))
        writer.write(self.order, 2)
        writer.golombs(_steps(self.rungs).tolist(), self.order)


def fit_ladder(counts: NDArray[np.int64], length: int) -> Ladder:
    """The rungs that follow counts of magnitudes best.

    Args:
        counts: shape (contexts, magnitudes), how often each magnitude occurs.
        length: rungs a context, one of `lengths`.
    """
    reached = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    stopped = counts.copy()
    if length < counts.shape[1]:  # the last rung speaks for all that follow
        tail = slice(length - 1, None)
        stopped = np.concatenate(
            [counts[:, : length - 1], counts[:, tail].sum(axis=1, keepdims=True)], axis=1
        )
        reached = np.concatenate(
            [reached[:, : length - 1], reached[:, tail].sum(axis=1, keepdims=True)], axis=1
        )
    stopped, reached = stopped[:, :length], reached[:, :length]
    pooled = (stopped.sum(axis=0) + 0.5) / (reached.sum(axis=0) + 1.0)
    chance = (stopped + 2 * pooled) / (reached + 2.0)
    chance = np.clip(chance, 1e-9, 1 - 1e-9)
    rungs = np.rint(np.log2(chance / (1 - chance)) / np.log2(1.25))
    rungs = np.clip(rungs, -RUNGS, RUNGS).astype(np.int64)
    values = _steps(rungs)
    costs = [
        int(2 * np.frexp((values + (1 << k)).astype(np.float64))[1].sum()) - (1 + k) * values.size
        for k in range(4)
    ]
    order = min(range(4), key=lambda k: costs[k])
    stop = _CHANCES[rungs + RUNGS] / (1 << 24)
    spent = stopped * np.log2(stop) + (reached - stopped) * np.log2(1 - stop)
    return Ladder(rungs, order, costs[order] + 12, float(-spent.sum()))


def lengths(magnitudes: int) -> list[int]:
    """How many rungs are worth a try for so many magnitudes."""
    return [length for length in _LENGTHS if length <= max(magnitudes, 1)]


def read_ladder(reader: BitReader, contexts: int) -> NDArray[np.int64]:
    """Rungs, shape (contexts, length).

    Raises:
        FileError: a rung is not on the ladder.
    """
    index = reader.golomb()
    if index >= len(_LENGTHS):
        raise FileError(f"a distribution has length number {index}, which is unknown")
    length, order = _LENGTHS[index], reader.read(2)
    folded = reader.golombs(contexts * length, order)
    if max(folded) > 8 * RUNGS:
        raise FileError("a distribution leaves its ladder")
    steps = np.array([unzigzag(value) for value in folded], dtype=np.int64)
    rungs = steps.reshape(contexts, length).cumsum(axis=1).cumsum(axis=0)
    if int(np.abs(rungs).max()) > RUNGS:
        raise FileError("a distribution leaves its ladder")
    return rungs


def ladder_frequencies(rungs: NDArray[np.int64], magnitudes: int) -> NDArray[np.int64]:
    """Frequencies of the symbols 0, -1, 1, -2, 2, …, shape (contexts, 2 magnitudes - 1).

    Args:
        rungs: shape (contexts, length).
        magnitudes: number of magnitudes, 0 among them.
    """
    sizes = np.zeros((rungs.shape[0], magnitudes), dtype=np.int64)
    fast = loops()
    if fast is not None:
        fast.shares(_CHANCES[rungs + RUNGS], 1 << TOTAL_BITS, sizes)
    else:
        _share(_CHANCES[rungs + RUNGS].tolist(), sizes)
    pairs = np.repeat(sizes[:, 1:] >> 1, 2, axis=1)
    return np.maximum(np.concatenate([sizes[:, :1], pairs], axis=1), 1)


def _share(chances_of_rows: list[list[int]], sizes: NDArray[np.int64]) -> None:
    """`compiled.shares` of all that a table has, where nothing is compiled."""
    magnitudes = sizes.shape[1]
    for row, chances in zip(sizes, chances_of_rows, strict=True):
        left = 1 << TOTAL_BITS
        found: list[int] = []
        own, further = chances[: magnitudes - 1], max(magnitudes - 1 - len(chances), 0)
        for chance in chain(own, repeat(chances[-1], further)):
            size = left * chance >> 24
            if not size and len(found) >= len(own):
                break  # too little is left for all that follow
            left -= size
            found.append(size)
        row[: len(found)] = found
        row[-1] = left


def _steps(rungs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Differences between contexts, of these the differences along the ladder, folded, flat."""
    along = rungs.copy()
    along[1:] -= rungs[:-1]
    along[:, 1:] -= along[:, :-1].copy()
    return np.where(along >= 0, 2 * along, -2 * along - 1).reshape(-1)
