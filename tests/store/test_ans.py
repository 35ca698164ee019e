# SPDX-License-Identifier: Apache-2.0
"""ANS: exact, close to the entropy, and decodable by an independent decoder of twenty lines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.ans import AnsReader, encode
from rarefy.store.fields import Cursor
from rarefy.store.frequencies import counted, scaled


def decode_by_hand(data: bytes, count: int, frequencies: NDArray[np.int64]) -> list[int]:
    """The coder as the format documents it, in Python's integers: no library involved."""
    size = len(frequencies)
    scale = ((1 << 24) - size) / float(frequencies.sum())
    sums = np.concatenate([[0], np.cumsum(frequencies)[:-1]])
    lefts = [place + int(float(total) * scale) for place, total in enumerate(sums)] + [1 << 24]
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype="<u4").tolist()
    state = 0
    for _ in range(min(2, len(words))):
        state = state << 32 | words.pop()
    out = []
    for _ in range(count):
        part = state & (1 << 24) - 1
        symbol = int(np.searchsorted(lefts, part, side="right")) - 1
        state = (state >> 24) * (lefts[symbol + 1] - lefts[symbol]) + part - lefts[symbol]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        out.append(symbol)
    return out


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 100))
def test_messages_come_back_in_pieces(message: list[int], cut: int) -> None:
    symbols = np.array(message)
    table = scaled(np.bincount(symbols, minlength=31))
    data = encode(symbols, table)
    reader = AnsReader(Cursor(data), len(data), table)
    cut = min(cut, len(message))
    assert reader.read(cut).tolist() + reader.read(len(message) - cut).tolist() == message


@pytest.mark.parametrize("alphabet", [2, 3, 17, 256, 2000])
def test_the_documented_arithmetic_decodes_the_same(alphabet: int) -> None:
    rng = np.random.default_rng(alphabet)
    symbols = (rng.random(3000) ** 3 * alphabet).astype(np.int64)
    table = scaled(np.bincount(symbols, minlength=alphabet))
    assert decode_by_hand(encode(symbols, table), 3000, table) == symbols.tolist()


@pytest.mark.parametrize("spread", [0.3, 2.0, 20.0])
def test_a_long_message_takes_its_entropy(spread: float) -> None:
    rng = np.random.default_rng(0)
    symbols = np.abs(np.rint(rng.normal(scale=spread, size=100_000))).astype(np.int64)
    counts = np.bincount(symbols)
    share = counts[counts > 0] / symbols.size
    entropy = float(-(share * np.log2(share)).sum()) * symbols.size / 8
    data = encode(symbols, scaled(counts))
    assert entropy - 1 <= len(data) <= 1.001 * entropy + 8
    rounded = counted(counts).frequencies
    assert len(encode(symbols, rounded)) <= 1.02 * entropy


def test_bytes_that_no_encoder_ends_with_are_refused() -> None:
    with pytest.raises(FileError, match="no encoder writes"):
        AnsReader(Cursor(b"abc\0"), 4, np.array([1, 1]))
    with pytest.raises(FileError, match="announced"):
        AnsReader(Cursor(b"abc"), 4, np.array([1, 1]))


def test_any_bytes_decode_to_symbols_of_the_alphabet() -> None:
    rng = np.random.default_rng(0)
    for size in range(1, 40):
        data = rng.integers(1, 256, size, dtype=np.uint8).tobytes()
        symbols = AnsReader(Cursor(data), size, np.array([5, 1, 9])).read(500)
        assert symbols.min() >= 0
        assert symbols.max() <= 2
