# SPDX-License-Identifier: Apache-2.0
"""Tensors: exact for every dtype and shape, in a coding that suits them, within 2 % of entropy."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import coding_name, decode_tensor
from rarefy.store.keys import DTYPES, dtype_named

from .arrays import arrays, random_bits, same, weights

CODERS = st.sampled_from(["auto", "huffman", "ans", "raw", "mixing"])


def entropy_bytes(array: np.ndarray) -> float:
    counts = np.unique(array, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) * array.size / 8


@settings(max_examples=150)
@given(arrays(), CODERS)
def test_every_array_comes_back(array: np.ndarray, coder: str) -> None:
    data = encode_tensor(array, coder)
    assert same(decode_tensor(data, array.dtype, array.shape), array)
    assert len(data) <= array.nbytes + 1
    assert data == encode_tensor(array.copy(), coder)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("coder", ["auto", "huffman"])
def test_every_dtype_comes_back_at_length(name: str, coder: str) -> None:
    array = random_bits(dtype_named(name), (33, 257), 5)
    assert same(decode_tensor(encode_tensor(array, coder), array.dtype, array.shape), array)
    thin = array.copy()
    thin[np.random.default_rng(0).random(array.shape) < 0.9] = 0
    assert same(decode_tensor(encode_tensor(thin, coder), thin.dtype, thin.shape), thin)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (weights((300, 400), 0.08, 32), ("codebook", "ans")),
        (weights((300, 400), 0.004, 0), ("(ans)", "planes")),
        (weights((300, 400), 1, 0), ("planes+ans",)),
        (weights((300, 400), 1, 200), ("codebook+ans",)),
        (np.zeros((100, 1000), np.float32), ("codebook+constant",)),
        (np.arange(10_000), ("differences",)),
        (np.tile(np.arange(251, dtype=np.uint8), 99), ("lz",)),
        (random_bits(np.dtype(np.uint64), (500,), 0), ("raw",)),
        (np.zeros((0, 3)), ("empty",)),
    ],
)
def test_each_kind_of_tensor_gets_its_coding(array: np.ndarray, words: tuple[str, ...]) -> None:
    name = coding_name(encode_tensor(array), array.dtype, array.shape)
    assert all(word in name for word in words), name


@pytest.mark.parametrize("keep", [0.02, 0.08, 0.3, 1.0])
@pytest.mark.parametrize("levels", [2, 3, 16, 32, 255])
def test_quantised_tensors_take_their_entropy(keep: float, levels: int) -> None:
    array = weights((400, 500), keep, levels)
    assert len(encode_tensor(array)) < 1.02 * entropy_bytes(array) + 60


def test_structure_beats_the_entropy_of_single_values() -> None:
    array = weights((500, 400), 0.3, 32)
    array[:, np.random.default_rng(0).random(400) < 0.7] = 0  # inputs that nothing listens to
    data = encode_tensor(array)
    assert len(data) < 0.85 * entropy_bytes(array)
    assert same(decode_tensor(data, array.dtype, array.shape), array)


def test_a_background_other_than_zero_is_recognised() -> None:
    codes = np.full(100_000, 128, dtype=np.uint8)
    codes[np.random.default_rng(0).random(codes.size) < 0.01] = 7
    data = encode_tensor(codes)
    assert len(data) < 1.02 * entropy_bytes(codes) + 30
    assert same(decode_tensor(data, codes.dtype, codes.shape), codes)


def test_the_smallest_coder_wins() -> None:
    array = weights((300, 300), 0.1, 32)
    sizes = {coder: len(encode_tensor(array, coder)) for coder in ("auto", "huffman", "ans", "raw")}
    assert sizes["auto"] <= sizes["ans"] < sizes["huffman"] < sizes["raw"] == array.nbytes + 1


def test_scaled_integers_cost_as_little_as_the_integers() -> None:
    codes = np.rint(np.random.default_rng(0).normal(scale=20, size=50_000)).astype(np.int8)
    floats = codes.astype(np.float32) * np.float32(0.0123)
    assert len(encode_tensor(floats)) < len(encode_tensor(codes)) + 30


def test_transposed_and_strided_arrays_come_back() -> None:
    array = weights((60, 70, 5), 0.2, 16)
    for view in (array.T, array[::2, ::-3], np.broadcast_to(array[0], (9, 70, 5))):
        assert same(decode_tensor(encode_tensor(view), view.dtype, view.shape), view)


@settings(max_examples=100)
@given(arrays(), st.data())
def test_damaged_payloads_give_one_error_or_an_array(
    array: np.ndarray, data: st.DataObject
) -> None:
    payload = bytearray(encode_tensor(array))
    for _ in range(data.draw(st.integers(1, 3))):
        if payload:
            place = data.draw(st.integers(0, len(payload) - 1))
            payload[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (payload, payload[:cut], payload + b"x"):
        with suppress(FileError):
            assert decode_tensor(damaged, array.dtype, array.shape).shape == array.shape


@given(st.binary(min_size=1, max_size=80), st.sampled_from(DTYPES), st.integers(1, 3000))
def test_arbitrary_bytes_give_one_error_or_an_array(data: bytes, name: str, count: int) -> None:
    with suppress(FileError):
        assert decode_tensor(data, dtype_named(name), (count,)).shape == (count,)


@pytest.mark.parametrize(
    "array", [weights((1000, 1000), keep, levels) for keep in (1, 0.1) for levels in (0, 32)]
)
def test_decoding_takes_little_more_than_the_tensor(array: np.ndarray) -> None:
    payload = encode_tensor(array)
    decode_tensor(payload, array.dtype, array.shape)
    tracemalloc.start()
    decode_tensor(payload, array.dtype, array.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes + 5 * len(payload) + (1 << 21)


def test_an_empty_tensor_of_an_impossible_shape_is_refused() -> None:
    with pytest.raises(FileError, match="no array can have the shape"):
        decode_tensor(b"", np.dtype("float32"), (0, 1 << 40, 1 << 40))
    assert decode_tensor(b"", np.dtype("float32"), (0, 1 << 40)).shape == (0, 1 << 40)
