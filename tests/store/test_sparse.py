# SPDX-License-Identifier: Apache-2.0
"""Sparse formats against SciPy: the same arrays, products equal to dense ones, exact sizes."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rarefy.store.relative import RelativeIndex
from rarefy.store.sparse import (
    Bitmap,
    Bsr,
    Coo,
    Csc,
    Csr,
    as_matrix,
    format_bytes,
    smallest_format,
    to_format,
)

from .arrays import weights


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return weights(shape, draw(st.sampled_from([0, 0.1, 0.5, 1])), 0, draw(st.integers(0, 99)))


@given(matrices())
def test_arrays_are_those_of_scipy(matrix: NDArray[np.float32]) -> None:
    csr, csc, coo = Csr.of(matrix), Csc.of(matrix), Coo.of(matrix)
    other = scipy.sparse.csr_array(matrix)
    assert np.array_equal(csr.values, other.data)
    assert np.array_equal(csr.columns, other.indices)
    assert np.array_equal(csr.starts, other.indptr)
    turned = scipy.sparse.csc_array(matrix)
    assert np.array_equal(csc.values, turned.data)
    assert np.array_equal(csc.rows, turned.indices)
    assert np.array_equal(csc.starts, turned.indptr)
    assert np.array_equal(np.stack([coo.rows, coo.columns]), np.stack(np.nonzero(matrix)))


@given(matrices())
def test_every_format_comes_back(matrix: NDArray[np.float32]) -> None:
    for form in (Coo, Csr, Csc, Bitmap):
        built = form.of(matrix)
        assert built.shape == matrix.shape
        assert np.array_equal(built.to_dense(), matrix)
        assert built.to_dense().dtype == matrix.dtype
    for block in ((1, 1), matrix.shape):
        assert np.array_equal(Bsr.of(matrix, block).to_dense(), matrix)


@pytest.mark.parametrize("block", [(2, 2), (4, 1), (3, 5), (12, 20)])
def test_blocks_are_those_of_scipy(block: tuple[int, int]) -> None:
    matrix = weights((12, 20), 0.05, 0)
    bsr, other = Bsr.of(matrix, block), scipy.sparse.bsr_array(matrix, blocksize=block)
    other.sort_indices()
    assert np.array_equal(bsr.to_dense(), matrix)
    assert np.array_equal(bsr.columns, other.indices)
    assert np.array_equal(bsr.starts, other.indptr)
    assert np.array_equal(bsr.values, other.data)
    with pytest.raises(ValueError, match="5 by 7 do not divide 12 by 20"):
        Bsr.of(matrix, (5, 7))


@given(matrices(), st.integers(1, 5))
def test_products_equal_dense_ones(matrix: NDArray[np.float32], columns: int) -> None:
    right = np.random.default_rng(0).normal(size=(matrix.shape[1], columns)).astype(np.float32)
    for form in (Coo, Csr, Csc):
        assert np.allclose(form.of(matrix).matmul(right), matrix @ right, rtol=1e-5, atol=1e-6)


@given(matrices())
def test_formulas_are_the_bytes(matrix: NDArray[np.float32]) -> None:
    sizes = format_bytes(matrix)
    for name, size in sizes.items():
        assert to_format(matrix, name).nbytes == size, name
    name, size = smallest_format(matrix)
    assert size == min(sizes.values()) == sizes[name]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_higher_dimensions_count_as_their_first_axis_by_the_rest(dtype: type) -> None:
    array = (weights((6, 4, 3, 3), 0.2, 9) * 100).astype(dtype)
    assert as_matrix(array).shape == (6, 36)
    for name, size in format_bytes(array).items():
        built = to_format(array, name)
        assert built.nbytes == size
        dense = built.to_dense() if hasattr(built, "to_dense") else built
        if isinstance(built, RelativeIndex):
            dense = dense.reshape(6, 36)
        assert np.array_equal(dense.reshape(array.shape), array)


def test_the_choice_follows_the_density() -> None:
    names = [smallest_format(weights((200, 200), keep, 0))[0] for keep in (1, 0.6, 0.1, 0.004)]
    assert names[0] == "dense"
    assert names[1] == "bitmap"
    assert names[2].startswith("relative")
    assert names[3] == "relative8"


def test_csr_breaks_even_at_half_with_equal_widths() -> None:
    for keep, better in ((0.45, True), (0.55, False)):
        sizes = format_bytes(weights((500, 500), keep, 0))
        assert (sizes["csr"] < sizes["dense"]) == better
        assert sizes["bitmap"] < sizes["csr"]
