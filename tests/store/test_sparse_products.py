# SPDX-License-Identifier: Apache-2.0
"""Sparse products against dense ones and SciPy's, whoever does them; exact where numbers are integers."""

from unittest import mock

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from rarefy.store import sparse_products
from rarefy.store.sparse import Bsr, Csr
from rarefy.store.sparse_products import Rows, product

from .arrays import weights

SIZES = st.integers(1, 6)


@given(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES), SIZES, st.integers(0, 99), st.booleans())
def test_blocks_multiply_as_the_dense_matrix(
    block: tuple[int, int], count: tuple[int, int], k: int, seed: int, library: bool
) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random(count) < 0.3, np.ones(block)) > 0
    matrix = rng.integers(-9, 10, mask.shape) * mask
    right = rng.integers(-9, 10, (mask.shape[1], k))
    with mock.patch.object(sparse_products, "_mkl", return_value=library):
        for dtype in (np.int32, np.float64, np.float32):
            typed, other = matrix.astype(dtype), right.astype(dtype)
            expected = matrix @ right
            for left in (Bsr.of(typed, block), Csr.of(typed)):
                found = left.matmul(other)
                assert found.dtype == dtype
                assert np.array_equal(found, expected)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("k", [1, 300])
def test_long_rows_are_done_in_pieces(k: int, library: bool) -> None:
    matrix, right = weights((40, 3000), 0.3, 0), weights((3000, k), 1, 0, seed=1)
    matrix[7] = 0
    with mock.patch.object(sparse_products, "_mkl", return_value=library):
        found = Csr.of(matrix).matmul(right)
        blocks = Bsr.of(matrix, (8, 8)).matmul(right)
    other = scipy.sparse.csr_array(matrix) @ right
    assert np.allclose(found, other, rtol=1e-4, atol=1e-4)
    assert np.allclose(blocks, other, rtol=1e-4, atol=1e-4)
    assert not found[7].any()


def test_blocks_outside_of_the_matrix_are_refused() -> None:
    values, right = np.ones((2, 1, 1), np.float32), np.ones((3, 1), np.float32)
    good = np.array([0, 2], np.int32), np.array([0, 1, 2], np.int32)
    assert product(Rows(values, *good), right).tolist() == [[1], [1]]
    for columns in ([0, 3], [-1, 2]):
        with pytest.raises(ValueError, match="of 3"):
            product(Rows(values, np.array(columns, np.int32), good[1]), right)
    for starts in ([0, 1], [0, 3, 2], [1, 1, 2]):
        with pytest.raises(ValueError, match="divide 2 blocks"):
            product(Rows(values, good[0], np.array(starts, np.int32)), right)


def test_arrays_that_can_not_be_written_are_read() -> None:
    matrix = Csr.of(np.eye(4, dtype=np.float32))
    right = np.arange(8, dtype=np.float32).reshape(4, 2)
    for array in (matrix.values, matrix.columns, matrix.starts, right):
        array.flags.writeable = False
    assert np.array_equal(matrix.matmul(right), right)
    assert np.array_equal(matrix.matmul(right.T.copy().T), right)
