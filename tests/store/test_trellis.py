# SPDX-License-Identifier: Apache-2.0
"""Trellises: indices and integers are two ways to say the same, files keep either bit for bit."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import DENSE, TRELLIS, coding_name, decode_tensor
from rarefy.store.trellis import NEXT, indices_of, integers_along

from .arrays import same


def indices(shape: tuple[int, int], seed: int = 0, spread: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(scale=spread, size=shape)).astype(np.int32)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99), st.sampled_from([0.3, 2.0, 40.0]))
def test_indices_come_back(rows: int, columns: int, seed: int, spread: float) -> None:
    given_indices = indices((rows, columns), seed, spread)
    integers = integers_along(given_indices)
    for row, found in zip(given_indices.tolist(), integers.tolist(), strict=True):
        state = 0
        for index, integer in zip(row, found, strict=True):
            assert integer == 2 * index - (state > 1) * ((index > 0) - (index < 0))
            state = NEXT[state][index % 2]
    assert np.array_equal(indices_of(integers), given_indices)


def test_what_is_not_along_the_trellis_is_told() -> None:
    assert indices_of(np.array([[0, 1]])) is None  # state 0 has even multiples alone
    assert indices_of(np.array([[2, 2]])) is None  # an odd index leads to the odd ones
    assert indices_of(np.array([[2, -3, 0]])) is not None
    plain = np.random.default_rng(0).integers(-3, 4, (20, 20))
    assert indices_of(plain) is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(40, 50), (30, 6, 3, 3), (300, 400)])
def test_tensors_come_back(shape: tuple[int, ...], dtype: str) -> None:
    integers = integers_along(indices((shape[0], int(np.prod(shape[1:])))))
    step = np.float32(0.0371 if dtype == "float32" else 0.03125)
    array = (integers * step + np.float32(0)).astype(dtype).reshape(shape)
    payload = encode_tensor(array)
    assert payload[0] == DENSE | TRELLIS
    assert "trellis" in coding_name(payload, array.dtype, shape)
    assert same(decode_tensor(payload, array.dtype, shape), array)
    counts = np.bincount(indices((shape[0], int(np.prod(shape[1:])))).ravel() + 100)
    counts = counts[counts > 0]
    entropy = counts @ np.log2(counts.sum() / counts) / 8
    assert len(payload) < 1.02 * entropy + 40


@given(st.binary(min_size=1, max_size=60), st.sampled_from(["float32", "float64", "int8"]))
def test_any_bytes_give_values_or_one_sentence(data: bytes, dtype: str) -> None:
    for shape in ((5, 8), (40,)):
        with suppress(FileError):
            found = decode_tensor(bytes([DENSE | TRELLIS]) + data, np.dtype(dtype), shape)
            assert found.shape == shape
