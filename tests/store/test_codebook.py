# SPDX-License-Identifier: Apache-2.0
"""Codebooks: found in any tensor that has one, stored exactly, as a scale where there is one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.codebook import find_levels, find_scale, level_codes, read_levels, write_levels
from rarefy.store.coding import encode_tensor
from rarefy.store.fields import BitReader, BitWriter, Cursor
from rarefy.store.keys import FLOAT, SIGNED, UNSIGNED, distinct, from_keys, kind_of, to_keys

from .arrays import random_bits, weights


@pytest.mark.parametrize("count", [1, 2, 3, 30, 256, 257, 1500, 4096])
@pytest.mark.parametrize("size", [4096, 100_000])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_the_distinct_values_are_found(count: int, size: int, dtype: type) -> None:
    rng = np.random.default_rng(count)
    pool = np.unique(rng.integers(0, np.iinfo(dtype).max, count, dtype=dtype))
    pattern = pool[rng.integers(0, pool.size, size)]
    levels = find_levels(pattern, FLOAT)
    if count <= size // 8:
        assert levels is not None
        assert np.array_equal(levels, np.unique(to_keys(np.unique(pattern), FLOAT)))
    if levels is not None:
        codes = level_codes(pattern, levels, FLOAT)
        assert codes.dtype.itemsize == (1 if levels.size <= 256 else 2)
        assert np.array_equal(from_keys(levels, FLOAT)[codes], pattern)


def test_rare_values_are_not_missed() -> None:
    pattern = np.zeros(200_000, dtype=np.uint32)
    pattern[[7, 99_999, 199_998]] = [11, 22, 33]
    levels = find_levels(pattern, UNSIGNED)
    assert levels is not None
    assert levels.tolist() == [0, 11, 22, 33]


def test_many_distinct_values_have_no_codebook() -> None:
    assert find_levels(random_bits(np.dtype(np.uint32), (50_000,), 0), FLOAT) is None
    assert find_levels(weights((300, 300), 0.1, 0).view(np.uint32).reshape(-1), FLOAT) is None


@given(st.lists(st.integers(0, 1 << 32), min_size=1, max_size=100))
def test_distinct_agrees_with_sets(values: list[int]) -> None:
    assert distinct(np.array(values, dtype=np.uint64)).tolist() == sorted(set(values))


@given(
    st.sets(st.integers(0, (1 << 32) - 1), min_size=1, max_size=80),
    st.sampled_from([FLOAT, SIGNED]),
)
def test_any_levels_come_back(keys: set[int], kind: int) -> None:
    levels = np.array(sorted(keys), dtype=np.uint32)
    dtype = np.dtype(np.float32 if kind == FLOAT else np.int32)
    data = write_levels(levels, kind, dtype)
    read = read_levels(BitReader(Cursor(data)), kind, dtype, 80)
    assert np.array_equal(read, from_keys(levels, kind))


@pytest.mark.parametrize("scale", [0.0123, 1e-20, 3.0, -0.25])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_scale_and_integers_take_a_few_bytes(scale: float, dtype: type) -> None:
    integers = np.arange(-100, 101)
    if np.dtype(dtype).itemsize == 2 and abs(scale) < 1e-5:
        scale = 0.5
    with np.errstate(over="ignore"):
        values = (dtype(scale) * integers.astype(dtype)).astype(dtype)
    pattern = values.view(f"u{values.dtype.itemsize}")
    levels = find_levels(np.tile(pattern, 3), kind_of(values.dtype))
    assert levels is not None
    data = write_levels(levels, FLOAT, values.dtype)
    assert len(data) < 64
    assert np.array_equal(
        read_levels(BitReader(Cursor(data)), FLOAT, values.dtype, 300), from_keys(levels, FLOAT)
    )


@pytest.mark.parametrize("smallest", [1, 7, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_grid_is_found_whatever_multiple_is_the_smallest(smallest: int, dtype: type) -> None:
    rng = np.random.default_rng(smallest)
    integers = np.concatenate([[smallest], rng.integers(smallest + 1, 400, 30) | 1])
    values = (dtype(0.0123) * integers.astype(dtype)).astype(dtype)
    levels = find_levels(values.view(f"u{values.dtype.itemsize}"), FLOAT)
    assert levels is not None
    found = find_scale(levels, values.dtype)
    assert found is not None
    assert found[1] == sorted({2 * int(i) for i in integers})


def test_few_values_on_a_grid_take_little_though_all_differ() -> None:
    integers = np.random.default_rng(0).permutation(np.arange(-300, 300))[:150]
    on_grid = encode_tensor(integers.astype(np.float32) * np.float32(0.0123))
    assert len(on_grid) < 150 * 11 / 8 + 16  # 600 multiples have 10 bits at most, of 32
    loose = np.random.default_rng(0).standard_normal(150).astype(np.float32)
    assert len(encode_tensor(loose)) > 2 * len(on_grid)


def test_negative_zero_is_a_level_of_its_own() -> None:
    values = np.array([0.0, -0.0, 0.5, -0.5, 1.0, -1.0] * 20, dtype=np.float32)
    levels = find_levels(values.view(np.uint32), FLOAT)
    assert levels is not None
    read = read_levels(
        BitReader(Cursor(write_levels(levels, FLOAT, values.dtype))), FLOAT, values.dtype, 9
    )
    assert {str(value) for value in read.view(np.float32)} == {str(value) for value in values}


def test_impossible_codebooks_are_refused() -> None:
    def reader(*fields: tuple[int, int]) -> BitReader:
        writer = BitWriter()
        for value, width in fields:
            writer.write(value, width)
        return BitReader(Cursor(writer.to_bytes() + bytes(20)))

    with pytest.raises(FileError, match="no levels"):
        read_levels(reader((0, 6), (0, 1)), FLOAT, np.dtype(np.float32), 9)
    fields = ((1, 6), (1, 1), (0, 8), (127, 7), (1, 1))
    with pytest.raises(FileError, match="can't have a scale"):
        read_levels(reader(*fields), SIGNED, np.dtype(np.int8), 9)
    with pytest.raises(FileError, match="at most 9"):
        read_levels(reader((5, 6), (15, 4), (0, 1)), FLOAT, np.dtype(np.float32), 9)
    with pytest.raises(FileError, match="wider than 8 bits"):
        read_levels(
            reader((1, 6), (0, 1), (0, 3), (1000, 10), (1, 1)), SIGNED, np.dtype(np.int8), 9
        )
