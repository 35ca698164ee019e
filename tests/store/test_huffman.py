# SPDX-License-Identifier: Apache-2.0
"""Huffman codes: optimal, complete, canonical; one lane or thousands decode to the same symbols."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.prefix_codes import optimum

from rarefy.errors import FileError
from rarefy.store.fields import Cursor
from rarefy.store.huffman import (
    LIMIT,
    HuffmanReader,
    canonical_codes,
    code_lengths,
    encode,
    encoded_bytes,
    lane_count,
)

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


def read_all(data: bytes, count: int, lengths: np.ndarray) -> np.ndarray:
    cursor = Cursor(data + b"end")
    reader = HuffmanReader(cursor, count, lengths)
    assert bytes(cursor.take(cursor.remaining)) == b"end"
    third = count // 3
    return np.concatenate([reader.read(third), reader.read(count - third)])


@given(COUNTS)
def test_lengths_are_optimal_and_complete(counts: list[int]) -> None:
    used = [count for count in counts if count]
    lengths = code_lengths(np.array(counts), limit=40)
    assert [bool(length) for length in lengths] == [bool(count) for count in counts]
    assert int(lengths.astype(int) @ np.array(counts)) == optimum(counts)
    if len(used) > 1:
        assert sum(2.0 ** -int(length) for length in lengths if length) == 1
        share = np.array(used) / sum(used)
        entropy = float(-(share * np.log2(share)).sum())
        mean = optimum(counts) / sum(used)
        assert entropy - 1e-9 <= mean < entropy + 1


@given(st.lists(st.integers(1, 1 << 30), min_size=2, max_size=16), st.integers(4, 8))
def test_limited_lengths_are_the_best_within_the_limit(counts: list[int], limit: int) -> None:
    lengths = code_lengths(np.array(counts), limit).astype(int)
    assert lengths.max() <= limit
    assert sum(2.0**-length for length in lengths) == 1
    cost = int(lengths @ np.array(counts))
    assert optimum(counts) <= cost <= (len(counts) - 1).bit_length() * sum(counts)
    for rarer, commoner in pairwise(np.argsort(counts)):
        assert counts[rarer] == counts[commoner] or lengths[rarer] >= lengths[commoner]


def test_a_tight_limit_forces_equal_lengths() -> None:
    lengths = code_lengths(np.array([1, 1, 1000, 1000000]), limit=2)
    assert lengths.tolist() == [2, 2, 2, 2]


def test_fibonacci_counts_are_cut_at_the_limit() -> None:
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    assert code_lengths(np.array(counts), 40).max() == 29
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == LIMIT
    assert sum(2.0 ** -int(length) for length in lengths) == 1


@given(COUNTS)
def test_canonical_codes_are_prefix_free(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    codes = canonical_codes(lengths)
    words = [format(c, f"0{n}b") for c, n in zip(codes, lengths, strict=True) if n]
    assert len(set(words)) == len(words)
    assert not any(a != b and b.startswith(a) for a in words for b in words)
    assert sorted(words, key=lambda w: (len(w), w)) == sorted(
        words, key=lambda w: (len(w), int(w, 2))
    )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300))
def test_short_messages_come_back(message: list[int]) -> None:
    symbols = np.array(message, dtype=np.uint16)
    lengths = code_lengths(np.bincount(symbols, minlength=41))
    assert read_all(encode(symbols, lengths), symbols.size, lengths).tolist() == message


@pytest.mark.parametrize("count", [8191, 8192, 8193, 20000, 100003])
def test_messages_in_lanes_come_back_at_the_estimated_size(count: int) -> None:
    symbols = np.random.default_rng(count).geometric(0.2, count).clip(max=60).astype(np.uint8)
    counts = np.bincount(symbols)
    lengths = code_lengths(counts)
    data = encode(symbols, lengths)
    assert np.array_equal(read_all(data, count, lengths), symbols)
    assert len(data) == pytest.approx(encoded_bytes(counts, lengths), rel=0.005, abs=4)
    assert lane_count(count) == (1 if count < 8192 else count // 512)


def test_a_single_symbol_needs_one_bit_each() -> None:
    symbols = np.full(100, 3)
    lengths = code_lengths(np.bincount(symbols))
    data = encode(symbols, lengths)
    assert len(data) == 1 + 13
    assert np.array_equal(read_all(data, 100, lengths), symbols)


def test_incomplete_codes_and_lanes_are_refused() -> None:
    with pytest.raises(FileError, match="complete prefix code"):
        HuffmanReader(Cursor(b"\x01\x00"), 1, np.array([1, 2, 0], dtype=np.uint8))
    with pytest.raises(FileError, match="complete prefix code"):
        HuffmanReader(Cursor(b"\x01\x00"), 1, np.array([0, 0], dtype=np.uint8))
    with pytest.raises(FileError, match="complete prefix code"):
        HuffmanReader(Cursor(b"\x01\x00"), 1, np.array([200, 200], dtype=np.uint8))
    symbols = np.random.default_rng(0).integers(0, 5, 9000)
    lengths = code_lengths(np.bincount(symbols))
    data = bytearray(encode(symbols, lengths))
    data[3] ^= 1
    with pytest.raises(FileError, match=r"do not add up|announced|possible"):
        HuffmanReader(Cursor(data), 9000, lengths)
    with pytest.raises(ValueError, match="no code of at most 3 bits"):
        code_lengths(np.ones(9), limit=3)
