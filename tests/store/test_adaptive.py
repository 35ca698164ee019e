# SPDX-License-Identifier: Apache-2.0
"""Mixed contexts: everything comes back, structure is found, damage ends in values or one sentence."""

from contextlib import suppress
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.adaptive import COARSE, LISTED, SQUARES, likely_side
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import MIXED, coding_name, decode_tensor

from .arrays import same


def grid(shape: tuple[int, ...], spread: float, seed: int, dtype: str = "float32") -> np.ndarray:
    """Integers times a step, rows and columns of very different size."""
    rng = np.random.default_rng(seed)
    scale = np.exp(1.3 * rng.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    codes = np.rint(rng.laplace(size=shape) * scale * spread).clip(-100, 100)
    steps = {"float32": np.float32(0.037), "float16": np.float32(0.03125)}
    codes = codes.astype(np.float32) + np.float32(0)  # no negative zeros
    return (codes * steps.get(dtype, np.float32(1))).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int32"])
@pytest.mark.parametrize("shape", [(30,), (12, 40), (6, 8, 3, 3), (300, 1)])
def test_tensors_come_back(shape: tuple[int, ...], dtype: str) -> None:
    array = grid(shape, 1.0, sum(shape), dtype)
    payload = encode_tensor(array, "mixing")
    assert same(decode_tensor(payload, array.dtype, array.shape), array)
    assert len(payload) <= len(encode_tensor(array))
    if array.size > 30:
        assert coding_name(payload, array.dtype, array.shape) == "codebook+mixing"


def test_a_step_of_eight_bits_takes_two_bytes() -> None:
    codes = np.random.default_rng(0).integers(-2, 3, (40, 30)).astype(np.float32)
    fine, coarse = np.float32(0.0123456), np.array([0x3C4A0000], np.uint32).view(np.float32)[0]
    long, short = (encode_tensor(codes * step, "mixing") for step in (fine, coarse))
    assert len(long) == len(short) + 2
    for step, data in ((fine, long), (coarse, short)):
        assert same(decode_tensor(data, np.dtype("float32"), codes.shape), codes * step)


def test_a_step_without_two_bytes_to_leave_out_is_refused() -> None:
    data = bytes([MIXED | COARSE, 1, 2, 3])
    for dtype in ("float16", "int8"):
        with pytest.raises(FileError, match="no bytes to leave out"):
            decode_tensor(data, np.dtype(dtype), (4, 4))


def test_levels_that_are_no_multiples_are_listed() -> None:
    levels = np.array([0, 0.11, -0.29, 0.53, 1.7], np.float32)
    rng = np.random.default_rng(0)
    filled = rng.random((40, 50)) < np.linspace(0.02, 0.5, 40)[:, None]
    array = np.where(filled, levels[rng.integers(1, 5, (40, 50))], np.float32(0))
    payload = encode_tensor(array, "mixing")
    assert payload[0] == MIXED | LISTED
    assert same(decode_tensor(payload, array.dtype, array.shape), array)


def test_less_than_the_entropy_of_single_values_where_rows_differ() -> None:
    array = grid((60, 100), 0.3, 5)
    counts = np.unique(array, return_counts=True)[1]
    entropy = (counts @ np.log2(counts.sum() / counts)) / 8
    size = len(encode_tensor(array, "mixing"))
    assert size < 0.9 * entropy
    assert size < 0.98 * len(encode_tensor(array))


def test_within_two_per_cent_of_the_entropy_where_nothing_is_to_be_found() -> None:
    rng = np.random.default_rng(3)
    array = rng.choice(np.arange(-2, 3), (100, 200), p=[0.02, 0.1, 0.7, 0.15, 0.03])
    counts = np.bincount(array.ravel() + 2)
    entropy = (counts @ np.log2(counts.sum() / counts)) / 8
    assert len(encode_tensor(array.astype(np.int8), "mixing")) < 1.02 * entropy + 8


def smooth(shape: tuple[int, ...], side: int, seed: int) -> np.ndarray:
    """Integers that follow pictures of side × side which change slowly from line to line, many of them 0."""
    rng = np.random.default_rng(seed)
    fine = rng.normal(size=(prod(shape) // side**2, side + 2, side + 2))
    for axis in (1, 2):
        fine = sum(np.roll(fine, by, axis) for by in (0, 1, 2))
    return np.rint(0.6 * fine[:, 2:, 2:]).clip(-3, 3).astype(np.int8).reshape(shape)


@pytest.mark.parametrize("shape", [(8, 6, 5, 5), (4, 4, 2, 5, 5)])
def test_kernels_are_pictures(shape: tuple[int, ...]) -> None:
    array = smooth(shape, 5, 0)
    shuffled = np.random.default_rng(1).permutation(array.reshape(-1, 25).T).T.reshape(shape)
    pictured, plain = (
        len(encode_tensor(x, "mixing")) for x in (array, np.ascontiguousarray(shuffled))
    )
    assert pictured < 0.9 * plain
    payload = encode_tensor(array, "mixing")
    assert payload[0] == MIXED
    assert same(decode_tensor(payload, array.dtype, shape), array)


@pytest.mark.parametrize(("columns", "side"), [(64, 8), (3 * 36, 6), (784, 28)])
def test_rows_of_a_matrix_that_are_squares_are_found(columns: int, side: int) -> None:
    array = smooth((24, columns), side, columns)
    assert likely_side(np.sign(array).reshape(-1), array.shape) == side
    payload = encode_tensor(array, "mixing")
    assert payload[:2] == bytes([MIXED | SQUARES, side])
    assert same(decode_tensor(payload, array.dtype, array.shape), array)
    columns_mixed = np.random.default_rng(0).permutation(array.T).T
    assert likely_side(np.sign(columns_mixed).reshape(-1), array.shape) == 0
    assert len(payload) < 0.9 * len(encode_tensor(np.ascontiguousarray(columns_mixed), "mixing"))


def test_squares_that_do_not_fill_the_rows_are_refused() -> None:
    for shape in ((4, 50), (4, 4, 9), (9,)):
        with pytest.raises(FileError, match="no squares of 3 by 3"):
            decode_tensor(bytes([MIXED | SQUARES, 3, 1, 2]), np.dtype("int8"), shape)


@settings(max_examples=40)
@given(st.binary(max_size=40), st.sampled_from(["float32", "int8", "uint8", "float64", "bool"]))
def test_any_bytes_give_values_or_one_sentence(data: bytes, dtype: str) -> None:
    for tag in (MIXED, MIXED | LISTED, MIXED | SQUARES):
        with suppress(FileError):
            found = decode_tensor(bytes([tag]) + data, np.dtype(dtype), (7, 9))
            assert (found.shape, found.dtype) == ((7, 9), np.dtype(dtype))


def test_what_would_take_minutes_is_refused() -> None:
    with pytest.raises(FileError, match="1,000,000 values under mixed contexts"):
        decode_tensor(bytes([MIXED, 0, 0, 0, 60]), np.dtype("float32"), (1000, 1000))
