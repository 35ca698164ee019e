# SPDX-License-Identifier: Apache-2.0
"""Keys are permutations of the patterns that put values in order of magnitude."""

import numpy as np
import pytest
from hypothesis import given

from rarefy.store.keys import (
    DTYPES,
    FLOAT,
    SIGNED,
    UNSIGNED,
    count_distinct,
    count_nonzero,
    dtype_named,
    from_keys,
    kind_of,
    patterns,
    real_of,
    to_keys,
)

from .arrays import arrays, random_bits


@pytest.mark.parametrize("kind", [FLOAT, SIGNED, UNSIGNED])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_keys_are_permutations(kind: int, dtype: type) -> None:
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    keys = to_keys(every, kind)
    assert keys.dtype == every.dtype
    assert np.array_equal(np.sort(keys), every)
    assert np.array_equal(from_keys(keys, kind), every)
    assert keys[0] == 0


def test_integers_fold_by_magnitude() -> None:
    values = np.array([0, -1, 1, -2, 2, 127, -128], dtype=np.int8)
    assert to_keys(values.view(np.uint8), SIGNED).tolist() == [0, 1, 2, 3, 4, 254, 255]


def test_floats_rise_with_magnitude() -> None:
    values = np.array([0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5, 1.0, np.inf], dtype=np.float32)
    assert (np.diff(to_keys(values.view(np.uint32), FLOAT).astype(np.int64)) > 0).all()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_patterns_of_its_bits(name: str) -> None:
    dtype = dtype_named(name)
    assert dtype.name == name
    array = random_bits(dtype, (3, 5), 1)
    pattern = patterns(array)
    assert pattern.dtype.kind == "u"
    assert pattern.tobytes() == array.tobytes()
    assert pattern.dtype.itemsize == real_of(dtype).itemsize
    assert kind_of(dtype) in (FLOAT, SIGNED, UNSIGNED)


def test_the_numbers_of_dtypes_in_files_never_change() -> None:
    assert DTYPES[:12] == (
        "bool", "int8", "uint8", "int16", "uint16", "int32",
        "uint32", "int64", "uint64", "float16", "float32", "float64",
    )  # fmt: skip
    assert DTYPES.index("bfloat16") == 14
    assert DTYPES.index("int4") == 26
    assert len(DTYPES) == 30


@given(arrays())
def test_counts_agree_with_python(array: np.ndarray) -> None:
    size = array.dtype.itemsize
    data = np.ascontiguousarray(array).tobytes()
    values = {data[start : start + size] for start in range(0, len(data), size)}
    assert count_distinct(array) == len(values)
    zero = array.dtype.name != "float8_e8m0fnu"  # that one can't hold a zero
    assert (
        count_nonzero(array) == sum(value != 0 for value in array.reshape(-1) if zero) or not zero
    )


def test_other_byte_orders_and_strides_do_not_matter() -> None:
    array = np.arange(24, dtype=">f4").reshape(4, 6)[::2, ::-3]
    native = np.ascontiguousarray(array).astype("=f4")
    assert np.array_equal(patterns(array), native.reshape(-1).view(np.uint32))
