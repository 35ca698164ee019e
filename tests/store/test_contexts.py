# SPDX-License-Identifier: Apache-2.0
"""Codes under contexts: exact, near the conditional entropy, never worse, safe against damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.contexts import ContextReader, plan_contexts
from rarefy.store.decoding import coding_name, decode_tensor
from rarefy.store.fields import Cursor


def scaled_rows(rows: int, columns: int, spread: float, seed: int = 0) -> NDArray[np.int64]:
    """Integers whose scale differs from row to row by about 2**spread."""
    rng = np.random.default_rng(seed)
    scale = 3 * np.exp2(spread * rng.normal(size=(rows, 1)))
    return np.rint(rng.laplace(size=(rows, columns)) * scale).astype(np.int64).clip(-400, 400)


def folded(q: NDArray[np.int64]) -> NDArray[np.uint16]:
    return (2 * np.abs(q) - (q < 0)).astype(np.uint16)


def planned(symbols: NDArray[np.uint16], shape: tuple[int, ...]) -> bytes:
    """All symbols below 801 under contexts."""
    plan = plan_contexts(symbols, 801, True, shape, "auto")
    assert plan is not None
    return plan.encode()


def conditional_entropy(q: NDArray[np.int64]) -> float:
    """Bits of all entries, each row under its own Laplace law with the scale that fits it best."""
    bits, ends = 0.0, np.arange(-400, 401) + 0.5
    for row in q:
        spent = []
        for scale in np.exp2(np.arange(-2, 8, 0.25)):
            below = 0.5 + 0.5 * np.sign(ends) * (1 - np.exp(-np.abs(ends) / scale))
            p = np.maximum(np.diff(below, prepend=0), 1e-12)
            spent.append(-np.log2(p[row + 400]).sum())
        bits += min(spent)
    return bits


def test_rows_alike_need_no_contexts() -> None:
    q = scaled_rows(256, 512, 0.0)
    assert plan_contexts(folded(q).reshape(-1), 801, True, q.shape, "auto") is None


@pytest.mark.parametrize("spread", [0.3, 0.7, 1.5])
def test_within_two_per_cent_of_the_conditional_entropy(spread: float) -> None:
    q = scaled_rows(256, 512, spread)
    symbols = folded(q).reshape(-1)
    data = planned(symbols, q.shape)
    assert 8 * len(data) <= 1.02 * conditional_entropy(q)
    assert np.array_equal(ContextReader(Cursor(data), 801, q.shape).read(q.size), symbols)


def test_contexts_beat_one_table_where_rows_differ() -> None:
    q = scaled_rows(128, 256, 1.5).clip(-127, 127).astype(np.int8)
    under, alone = encode_tensor(q), encode_tensor(q, "huffman")
    assert "contexts" in coding_name(under, q.dtype, q.shape)
    assert len(under) < 0.93 * len(alone)


@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple),
    spread=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["int8", "int16", "float32", "float16"]),
)
@settings(max_examples=60)
def test_tensors_come_back(shape: tuple[int, ...], spread: float, seed: int, dtype: str) -> None:
    size = int(np.prod(shape))
    q = scaled_rows(1, size, spread, seed).reshape(shape).clip(-100, 100)
    array = q.astype(dtype) * np.float32(0.25) if "float" in dtype else q
    array = np.asarray(array).astype(dtype)
    back = decode_tensor(encode_tensor(array), array.dtype, shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("levels", [[0, 2, 3, 9, 11], [5, 6, 100]])
def test_levels_that_are_no_multiples_are_listed(levels: list[int]) -> None:
    rng = np.random.default_rng(1)
    chosen = np.array(levels, dtype=np.float32) ** 1.3 - 1
    scale = rng.integers(1, len(levels) + 1, size=(200, 1))
    array = chosen[rng.integers(0, 1 << 30, size=(200, 64)) % scale]
    data = encode_tensor(array)
    assert np.array_equal(decode_tensor(data, array.dtype, array.shape), array)
    assert "contexts" in coding_name(data, array.dtype, array.shape)


def test_reading_in_small_pieces_is_reading_at_once() -> None:
    q = scaled_rows(300, 700, 1.0)
    symbols = folded(q).reshape(-1)
    data = planned(symbols, q.shape)
    reader, found = ContextReader(Cursor(data), 801, q.shape), []
    for count in (1, 0, 699, 5000, 100_000, symbols.size - 105_700):
        found.append(reader.read(count))
    assert np.array_equal(np.concatenate(found), symbols)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=150)
def test_damage_never_does_worse_than_wrong_values(place: int, bit: int, cut: bool) -> None:
    q = scaled_rows(40, 30, 1.0).clip(-127, 127).astype(np.int8)
    data = bytearray(encode_tensor(q))
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    try:
        back = decode_tensor(bytes(data), q.dtype, q.shape)
    except FileError:
        return
    assert back.shape == q.shape
