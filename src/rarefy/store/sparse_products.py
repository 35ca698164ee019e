# SPDX-License-Identifier: Apache-2.0
"""Products of sparse matrices with dense ones.

The sparse BLAS that PyTorch brings (MKL) does those that it knows: single and double precision, entries or
square blocks. numpy does the others, some thousand entries at a time, so that what is in between stays in
the processor's cache.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 18
"""Numbers in between that are held at once."""


class Rows(NamedTuple):
    """A matrix in compressed rows of blocks.

    Attributes:
        values: blocks, shape (blocks, height, width); single entries are blocks of one by one.
        columns: of the blocks, counted in blocks, shape (blocks,).
        starts: where each row of blocks begins, shape (block rows + 1,).
    """

    values: NDArray[Any]
    columns: NDArray[np.int32]
    starts: NDArray[np.int32]


def product(left: Rows, right: NDArray[Any]) -> NDArray[Any]:
    """A matrix in compressed rows, times `right` of shape (columns, k).

    Raises:
        ValueError: a block stands outside of the matrix, or rows overlap.
    """
    values, columns, starts = left
    last = int(columns.max(initial=-1))
    if columns.size and (int(columns.min()) < 0 or (last + 1) * values.shape[2] > right.shape[0]):
        raise ValueError(f"blocks reach column {last} of {right.shape[0] // values.shape[2]}")
    if starts[0] != 0 or starts[-1] != columns.size or (np.diff(starts) < 0).any():
        raise ValueError(f"rows don't divide {columns.size} blocks among themselves")
    known = values.dtype == right.dtype and values.dtype in (np.float32, np.float64)
    if known and values.shape[1] == values.shape[2] and _mkl():
        return _by_library(left, right)
    return by_numpy(left, right)


def _mkl() -> bool:
    import torch

    return torch.backends.mkl.is_available()


def _by_library(left: Rows, right: NDArray[Any]) -> NDArray[Any]:
    import torch

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))

    side = left.values.shape[1]
    values = left.values.reshape(-1) if side == 1 else left.values
    make = torch.sparse_csr_tensor if side == 1 else torch.sparse_bsr_tensor
    shape = ((left.starts.size - 1) * side, right.shape[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse .* support is in beta")
        parts = tensor(left.starts), tensor(left.columns), tensor(values)
        found = make(*parts, shape, check_invariants=False)  # `product` has seen to them
        return np.asarray((found @ tensor(right)).numpy())


def by_numpy(left: Rows, right: NDArray[Any]) -> NDArray[Any]:
    """`product` without the library."""
    values, columns, starts = left
    _, height, width = values.shape
    rows, count = starts.size - 1, right.shape[1]
    parts = right.reshape(-1, width, count)
    out = np.zeros((rows, height, count), dtype=np.result_type(values, right))
    each = max(_PIECE // max(max(height, width) * count, 1), 1)
    cuts = np.searchsorted(starts, np.arange(each, int(starts[-1]), each))
    edges = np.unique(np.concatenate([[0], cuts, [rows]]))
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        piece = slice(starts[first], starts[last])
        chosen = parts[columns[piece]]
        products = values[piece] * chosen if height == width == 1 else values[piece] @ chosen
        filled = first + np.flatnonzero(np.diff(starts[first : last + 1]))
        if filled.size:
            out[filled] = np.add.reduceat(products, starts[filled] - starts[first], axis=0)
    return out.reshape(rows * height, count)
