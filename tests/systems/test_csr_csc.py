# SPDX-License-Identifier: Apache-2.0
"""Sparse formats: exact round trips, products equal to dense ones, sizes by formula, best choice."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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


def thinned(shape: tuple[int, ...], keep: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < keep, rng.normal(size=shape), 0).astype(np.float32)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 1.0])
def test_round_trip_and_product(keep: float) -> None:
    matrix, right = thinned((48, 80), keep), thinned((80, 7), 1)
    for form in (Coo, Csr, Csc, Bitmap):
        assert np.array_equal(form.of(matrix).to_dense(), matrix)
    assert np.array_equal(Bsr.of(matrix, (4, 8)).to_dense(), matrix)
    for form in (Coo, Csr, Csc):
        assert np.abs(form.of(matrix).matmul(right) - matrix @ right).max() < 1e-5


def test_a_convolution_is_a_sparse_product_after_im2col() -> None:
    weight, images = thinned((12, 5, 3, 3), 0.2), thinned((2, 5, 9, 9), 1)
    columns = torch.nn.functional.unfold(torch.from_numpy(images), 3).numpy()
    sparse = Csr.of(as_matrix(weight))
    ours = np.stack([sparse.matmul(image) for image in columns]).reshape(2, 12, 7, 7)
    theirs = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(weight))
    assert np.allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("keep", [0.001, 0.03, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_the_choice_is_the_minimum_and_the_formula_the_size(keep: float) -> None:
    array = thinned((64, 16, 3, 3), keep)
    sizes = format_bytes(array)
    assert {name: to_format(array, name).nbytes for name in sizes} == sizes
    assert smallest_format(array)[1] == min(sizes.values())


def test_break_even_points() -> None:
    """CSR with 32-bit indices pays below one half; a bitmap beats it above three per cent."""
    for keep in (0.1, 0.3, 0.48):
        sizes = format_bytes(thinned((400, 400), keep))
        assert sizes["csr"] < sizes["dense"]
        assert sizes["bitmap"] < sizes["csr"]
    assert format_bytes(thinned((400, 400), 0.52))["csr"] > sizes["dense"] * 1.01
    sizes = format_bytes(thinned((400, 400), 0.02))
    assert sizes["csr"] < sizes["bitmap"]
