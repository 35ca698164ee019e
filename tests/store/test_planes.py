# SPDX-License-Identifier: Apache-2.0
"""Planes of bits: exact, and smaller than the raw bytes by what the exponents are predictable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.store.fields import Cursor
from rarefy.store.keys import FLOAT, SIGNED, dtype_named, to_keys
from rarefy.store.planes import PlanesReader, plan_planes, plane_widths

from .arrays import random_bits


@given(st.sampled_from([16, 32, 64]), st.integers(8, 12), st.booleans())
def test_planes_cover_all_bits(width: int, front: int, halved: bool) -> None:
    widths = plane_widths(width, front, halved and width > 16)
    assert sum(widths) == width
    assert widths[0] == front
    assert all(0 < size <= 8 for size in widths[1:])


@given(
    st.sampled_from(["float32", "float16", "bfloat16", "float64", "int32", "int64", "int8"]),
    st.integers(1, 600),
    st.integers(0, 99),
    st.sampled_from(["auto", "huffman", "ans"]),
)
def test_patterns_come_back(name: str, count: int, seed: int, coder: str) -> None:
    dtype = dtype_named(name)
    pattern = random_bits(dtype, (count,), seed).view(f"u{dtype.itemsize}")
    kind = SIGNED if "int" in name else FLOAT
    data = plan_planes(to_keys(pattern, kind), coder).encode()
    reader = PlanesReader(Cursor(data), count, kind, dtype)
    first = reader.read(count // 3)
    assert np.array_equal(np.concatenate([first, reader.read(count - count // 3)]), pattern)


def test_normal_weights_shrink_to_the_entropy_of_their_exponents() -> None:
    values = np.random.default_rng(0).normal(scale=0.05, size=200_000).astype(np.float32)
    exponents = np.bincount(values.view(np.uint32) >> 23 & 255)
    share = exponents[exponents > 0] / values.size
    entropy = -(share * np.log2(share)).sum()
    plan = plan_planes(to_keys(values.view(np.uint32), FLOAT), "auto")
    size = len(plan.encode())
    assert size < (24 + entropy) / 8 * values.size
    assert size == pytest.approx(plan.bits / 8, rel=0.001)
    assert values.nbytes / size > 1.2


@pytest.mark.parametrize("count", [5000, 5001])
def test_zeros_at_the_end_of_small_values_are_used(count: int) -> None:
    steps = np.random.default_rng(0).normal(scale=0.05, size=(count, 50)).astype(np.float32)
    values = steps.sum(axis=1, dtype=np.float32)  # rounded at larger sizes than the result's
    values = (values + np.float32(1)) - np.float32(1)
    pattern = values.view(np.uint32)
    data = plan_planes(to_keys(pattern, FLOAT), "auto").encode()
    reader = PlanesReader(Cursor(data), count, FLOAT, values.dtype)
    pieces = [reader.read(step) for step in (1, 2, 777, 0, count - 780)]
    assert np.array_equal(np.concatenate(pieces), pattern)
    assert len(data) < 0.8 * values.nbytes


def test_half_precision_values_in_float32_take_half_precision_bytes() -> None:
    half = np.random.default_rng(0).normal(size=100_000).astype(np.float16)
    wide = half.astype(np.float32)
    sizes = [
        len(plan_planes(to_keys(a.view(f"u{a.itemsize}"), FLOAT), "auto").encode())
        for a in (half, wide)
    ]
    assert sizes[1] < 1.01 * sizes[0]


def test_impossible_front_planes_are_refused() -> None:
    for front in (0, 7, 13, 16, 23, 29, 255):
        with pytest.raises(FileError, match="front plane"):
            PlanesReader(Cursor(bytes([front]) + bytes(50)), 4, FLOAT, np.dtype(np.float32))
    with pytest.raises(FileError, match="front plane of 9 bits"):
        PlanesReader(Cursor(bytes([25]) + bytes(50)), 4, FLOAT, np.dtype(np.float16))


@pytest.mark.parametrize("columns", [16, 64, 256])
def test_noise_in_one_column_is_not_taken_for_noise_in_all(columns: int) -> None:
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 1 << 32, (1 << 20) // columns * columns, dtype=np.uint32)
    pattern = pattern.reshape(-1, columns)
    pattern[:, 1:] &= np.uint32(0xFFFF0000)  # the lower half is told by the first column alone
    size = len(plan_planes(pattern.reshape(-1), "auto").encode())
    assert size < (2 + 3.2 / columns + 0.3) * pattern.size
