# SPDX-License-Identifier: Apache-2.0
"""Ladders of magnitudes: close to the entropy, exact round trips, damage refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.frequencies import TOTAL_BITS, entropy, information
from rarefy.store.ladder import RUNGS, fit_ladder, ladder_frequencies, lengths, read_ladder

COUNTS = st.lists(
    st.lists(st.integers(0, 5000), min_size=7, max_size=7), min_size=1, max_size=6
).map(np.array)


def by_symbol(sizes: np.ndarray) -> np.ndarray:
    """Counts of magnitudes as counts of 0, -1, 1, …, halves to both signs."""
    return np.concatenate([sizes[:1], np.repeat(sizes[1:] / 2, 2)])


@given(counts=COUNTS)
def test_round_trip(counts: np.ndarray) -> None:
    for length in lengths(counts.shape[1]):
        ladder, writer = fit_ladder(counts, length), BitWriter()
        ladder.write(writer)
        reader = BitReader(Cursor(writer.to_bytes()))
        assert np.array_equal(read_ladder(reader, len(counts)), ladder.rungs)
        assert np.abs(ladder.rungs).max() <= RUNGS


@given(counts=COUNTS)
def test_frequencies_are_positive_and_keep_their_sum(counts: np.ndarray) -> None:
    frequencies = ladder_frequencies(fit_ladder(counts, 4).rungs, 7)
    assert frequencies.shape == (len(counts), 13)
    assert frequencies.min() >= 1
    assert np.abs(frequencies.sum(axis=1) - (1 << TOTAL_BITS)).max() <= 26


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_magnitudes_of_a_laplace_law_cost_their_entropy(scale: float) -> None:
    rng = np.random.default_rng(0)
    drawn = np.rint(np.abs(rng.laplace(scale=scale, size=50_000))).astype(np.int64)
    counts = np.bincount(drawn)[None]
    for length in lengths(counts.shape[1])[3:]:
        ladder = fit_ladder(counts, length)
        frequencies = ladder_frequencies(ladder.rungs, counts.shape[1])[0]
        signs = counts[0, 1:].sum()
        spent = information(by_symbol(counts[0]), frequencies) - signs
        assert spent + ladder.bits <= 1.005 * entropy(counts[0]) + 60
        assert abs(ladder.information - spent) <= 0.001 * spent + 20


def test_a_rung_off_the_ladder_is_refused() -> None:
    writer = BitWriter()
    writer.golomb(0)
    writer.write(0, 2)
    writer.golomb(2 * (RUNGS + 1))
    with pytest.raises(FileError):
        read_ladder(BitReader(Cursor(writer.to_bytes() + bytes(4))), 1)
