# SPDX-License-Identifier: Apache-2.0
"""Steps of rows: found in values, kept bit for bit, worth what the finer steps of others would cost."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import ROWS, coding_name, decode_tensor
from rarefy.store.row_steps import RowSteps, find_rows, values_of_rows

from .arrays import same


def made(shape: tuple[int, ...], seed: int, reach: int = 4, spread: float = 3.0) -> RowSteps:
    rng = np.random.default_rng(seed)
    integers = np.rint(rng.laplace(scale=spread, size=shape)).astype(np.int16)
    step = int(np.array([0.0123], np.float32).view(np.uint32)[0])
    return RowSteps(step, rng.integers(-reach, reach + 1, shape[0]), integers)


def array_of(found: RowSteps) -> np.ndarray:
    return values_of_rows(found, np.dtype(np.float32)).view(np.float32)


@given(st.integers(2, 12), st.integers(6, 40), st.integers(0, 99))
def test_every_value_is_an_integer_times_the_step_of_its_row(
    rows: int, columns: int, seed: int
) -> None:
    array = array_of(made((rows, columns), seed)) + np.float32(0)
    found = find_rows(array)
    if found is not None:
        assert same(array_of(found), array)
        assert (np.abs(found.exponents) <= 12).all()
    assert same(decode_tensor(encode_tensor(array), array.dtype, array.shape), array)


@pytest.mark.parametrize("shape", [(60, 80), (40, 7, 3, 3), (64, 1, 3, 3)])
def test_rows_take_the_entropy_of_their_integers(shape: tuple[int, ...]) -> None:
    parts = made(shape, 1)
    array = array_of(parts) + np.float32(0)
    payload = encode_tensor(array)
    assert payload[0] == ROWS
    assert coding_name(payload, array.dtype, shape).startswith("rows+codebook")
    assert same(decode_tensor(payload, array.dtype, shape), array)
    counts = np.unique(parts.integers, return_counts=True)[1]
    entropy = counts @ np.log2(counts.sum() / counts) / 8
    # A row of even integers is one of a coarser step as well: less than the entropy is possible.
    assert len(payload) < 1.03 * entropy + 60 + shape[0] * np.log2(9) / 8


def test_other_tensors_have_no_steps_of_rows() -> None:
    rng = np.random.default_rng(0)
    assert find_rows(rng.normal(size=(30, 40)).astype(np.float32)) is None
    assert find_rows((rng.integers(-3, 4, (30, 40)) * 0.1).astype(np.float32)) is None
    assert find_rows(np.zeros((5, 5), np.float32)) is None
    assert find_rows(np.full((5, 5), np.nan, np.float32)) is None
    assert find_rows(np.arange(20).reshape(4, 5)) is None


@given(st.binary(min_size=1, max_size=60), st.sampled_from(["float32", "float16", "int8"]))
def test_any_bytes_give_values_or_one_sentence(data: bytes, dtype: str) -> None:
    for shape in ((5, 8), (40,)):
        with suppress(FileError):
            assert decode_tensor(bytes([ROWS]) + data, np.dtype(dtype), shape).shape == shape
