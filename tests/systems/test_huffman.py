# SPDX-License-Identifier: Apache-2.0
"""Huffman (1952) as in Deep Compression: codes of indices and of gaps, beside zlib."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from tests.store.prefix_codes import optimum

from rarefy.store.fields import Cursor
from rarefy.store.huffman import HuffmanReader, canonical_codes, code_lengths, encode
from rarefy.store.rfy import read, write

ALPHABETS = {
    "one symbol": np.zeros(50, dtype=np.int64),
    "two symbols": np.arange(50) // 49,
    "indices": np.random.default_rng(0).binomial(31, 0.4, 30_000),
    "gaps": np.random.default_rng(1).geometric(0.08, 30_000) - 1,
    "uniform": np.arange(25_600) % 256,
    "skewed": np.repeat(np.arange(14), 2 ** np.arange(14)),
}


@pytest.mark.parametrize("name", ALPHABETS)
def test_every_message_comes_back_at_the_optimum(name: str) -> None:
    symbols = ALPHABETS[name]
    counts = np.bincount(symbols)
    lengths = code_lengths(counts)
    data = encode(symbols, lengths)
    assert np.array_equal(
        HuffmanReader(Cursor(data), symbols.size, lengths).read(symbols.size), symbols
    )
    bits = int(counts @ lengths.astype(np.int64))
    assert bits == optimum(counts)
    share = counts[counts > 0] / symbols.size
    entropy = float(-(share * np.log2(share)).sum())
    if share.size > 1:
        assert entropy <= bits / symbols.size < entropy + 1
        assert sum(2.0 ** -int(length) for length in lengths if length) == 1
    codes = canonical_codes(lengths)
    order = sorted(np.flatnonzero(lengths), key=lambda s: (lengths[s], s))
    left = [int(codes[s]) << (15 - int(lengths[s])) for s in order]
    assert left == sorted(left)


def test_an_empty_alphabet_and_an_empty_tensor_take_nothing(tmp_path: Path) -> None:
    assert code_lengths(np.zeros(5, dtype=np.int64)).tolist() == [0] * 5
    empty = write(tmp_path / "a.rfy", {"a": np.zeros(0, np.float32)}, coder="huffman")
    assert empty - write(tmp_path / "b.rfy", {}, coder="huffman") < 12


def test_pruned_shared_weights_lose_a_fifth_more_than_their_packed_indices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    levels = np.linspace(-0.3, 0.3, 32).astype(np.float32)
    codes = np.clip(np.rint(rng.laplace(15.5, 3.2, (300, 800))), 0, 31).astype(int)
    weights = np.where(rng.random(codes.shape) < 0.08, levels[codes], np.float32(0))
    count = int(np.count_nonzero(weights))
    # Deep Compression before Huffman: 5-bit gaps with fillers and 5-bit indices.
    gaps = np.diff(np.flatnonzero(weights), prepend=-1)
    packed = (count + int(((gaps - 1) // 32).sum())) * 10 / 8 + levels.nbytes
    size = write(tmp_path / "a.rfy", {"w": weights}, coder="huffman")
    assert size < 0.9 * packed
    assert size < 0.8 * len(zlib.compress(weights.tobytes(), 9))
    with read(tmp_path / "a.rfy") as archive:
        assert np.array_equal(archive["w"], weights)
        assert "huffman" in archive.describe()[0]["coding"]
