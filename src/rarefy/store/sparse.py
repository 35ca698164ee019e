# SPDX-License-Identifier: Apache-2.0
"""The classic sparse formats with exact sizes: COO, CSR, CSC, BSR, bitmap, and the smallest of all.

A tensor counts as the matrix of its first axis against all others, as a convolution's weight does
after im2col. Values keep their dtype, indices take 32 bits. These are formats to compute on and to
compare with (-0.0 counts as zero); `.rfy` files use the smaller, exact layouts of `positions`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.store.relative import RelativeIndex, relative_index
from rarefy.store.sparse_products import Rows, product

Matrix = NDArray[Any]
Indices = NDArray[np.int32]

BLOCKS = ((2, 2), (4, 4), (8, 1), (1, 8), (8, 8))
"""Block shapes that `smallest_format` tries where they divide the matrix."""


@dataclass(frozen=True)
class SparseMatrix:
    """What all formats share: `shape` (rows, columns) and arrays whose bytes are its size."""

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


@dataclass(frozen=True)
class Coo(SparseMatrix):
    """Coordinates: row and column of each non-zero, shape (nnz,) each, in row-major order."""

    values: Matrix
    rows: Indices
    columns: Indices

    @classmethod
    def of(cls, matrix: Matrix) -> "Coo":
        """The non-zeros of a dense matrix."""
        rows, columns = (axis.astype(np.int32) for axis in np.nonzero(matrix))
        return cls(_shape(matrix), matrix[rows, columns], rows, columns)

    def to_dense(self) -> Matrix:
        """The matrix, shape (rows, columns)."""
        out = np.zeros(self.shape, dtype=self.values.dtype)
        out[self.rows, self.columns] = self.values
        return out

    def matmul(self, right: Matrix) -> Matrix:
        """This matrix times `right` of shape (columns, k)."""
        return Csr(self.shape, self.values, self.columns, _starts(self.rows, self.shape[0])).matmul(
            right
        )


@dataclass(frozen=True)
class Csr(SparseMatrix):
    """Compressed rows: columns (nnz,) of the non-zeros; starts (rows + 1,) of the rows in them."""

    values: Matrix
    columns: Indices
    starts: Indices

    @classmethod
    def of(cls, matrix: Matrix) -> "Csr":
        """The non-zeros of a dense matrix."""
        coo = Coo.of(matrix)
        return cls(coo.shape, coo.values, coo.columns, _starts(coo.rows, coo.shape[0]))

    def to_dense(self) -> Matrix:
        """The matrix, shape (rows, columns)."""
        rows = np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.starts))
        return Coo(self.shape, self.values, rows, self.columns).to_dense()

    def matmul(self, right: Matrix) -> Matrix:
        """This matrix times `right` of shape (columns, k): sums of rows of `right`."""
        return product(Rows(self.values.reshape(-1, 1, 1), self.columns, self.starts), right)


@dataclass(frozen=True)
class Csc(SparseMatrix):
    """Compressed columns: rows (nnz,) of the non-zeros; starts (columns + 1,) of the columns."""

    values: Matrix
    rows: Indices
    starts: Indices

    @classmethod
    def of(cls, matrix: Matrix) -> "Csc":
        """The non-zeros of a dense matrix, column by column."""
        turned = Csr.of(matrix.T)
        return cls(_shape(matrix), turned.values, turned.columns, turned.starts)

    def to_dense(self) -> Matrix:
        """The matrix, shape (rows, columns)."""
        return Csr(self.shape[::-1], self.values, self.rows, self.starts).to_dense().T

    def matmul(self, right: Matrix) -> Matrix:
        """This matrix times `right` of shape (columns, k): each column is scattered."""
        columns = np.repeat(np.arange(self.shape[1]), np.diff(self.starts))
        products = self.values[:, None] * right[columns]
        out = np.zeros((self.shape[0], right.shape[1]), dtype=products.dtype)
        np.add.at(out, self.rows, products)
        return out


@dataclass(frozen=True)
class Bsr(SparseMatrix):
    """Compressed rows of dense blocks: values (blocks, height, width), columns in blocks."""

    values: Matrix
    columns: Indices
    starts: Indices

    @classmethod
    def of(cls, matrix: Matrix, block: tuple[int, int]) -> "Bsr":
        """The blocks that hold a non-zero; `block` has to divide the shape.

        Raises:
            ValueError: it does not.
        """
        blocks = _blocks(matrix, block)
        where = Csr.of(np.asarray(blocks.any(axis=(2, 3))))
        rows = np.repeat(np.arange(blocks.shape[0]), np.diff(where.starts))
        return cls(_shape(matrix), blocks[rows, where.columns], where.columns, where.starts)

    def to_dense(self) -> Matrix:
        """The matrix, shape (rows, columns)."""
        height, width = self.values.shape[1:]
        rows, columns = self.shape[0] // height, self.shape[1] // width
        out = np.zeros((rows, columns, height, width), dtype=self.values.dtype)
        out[np.repeat(np.arange(rows), np.diff(self.starts)), self.columns] = self.values
        return out.transpose(0, 2, 1, 3).reshape(self.shape)

    def matmul(self, right: Matrix) -> Matrix:
        """This matrix times `right` of shape (columns, k): a small dense product for each block."""
        return product(Rows(self.values, self.columns, self.starts), right)


@dataclass(frozen=True)
class Bitmap(SparseMatrix):
    """One bit for each value, lowest bit first, and the non-zeros in row-major order."""

    values: Matrix
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, matrix: Matrix) -> "Bitmap":
        """The non-zeros of a dense matrix."""
        marks = matrix.reshape(-1) != 0
        bits = np.packbits(marks, bitorder="little")
        return cls(_shape(matrix), matrix.reshape(-1)[marks], bits)

    def to_dense(self) -> Matrix:
        """The matrix, shape (rows, columns)."""
        count = self.shape[0] * self.shape[1]
        out = np.zeros(count, dtype=self.values.dtype)
        out[np.unpackbits(self.bits, count=count, bitorder="little") != 0] = self.values
        return out.reshape(self.shape)


def format_bytes(array: Matrix) -> dict[str, int]:
    """Bytes of an array in every format, by formula: nothing is built.

    With v bytes a value, N values, z non-zeros, R rows and C columns: dense v N, bitmap
    v z + N/8, COO (v + 8) z, CSR (v + 4) z + 4 (R + 1), CSC (v + 4) z + 4 (C + 1), BSR
    (v h w + 4) blocks + 4 (R/h + 1), relative index with b-bit gaps (v + b/8) entries.
    """
    matrix = as_matrix(array)
    (rows, columns), size = matrix.shape, matrix.dtype.itemsize
    count = int(np.count_nonzero(matrix))
    sizes = {
        "dense": size * matrix.size,
        "bitmap": size * count + (matrix.size + 7) // 8,
        "coo": (size + 8) * count,
        "csr": (size + 4) * count + 4 * (rows + 1),
        "csc": (size + 4) * count + 4 * (columns + 1),
    }
    for height, width in BLOCKS:
        if rows % height == 0 and columns % width == 0 and matrix.size:
            full = int(_blocks(matrix, (height, width)).any(axis=(2, 3)).sum())
            bytes_ = (size * height * width + 4) * full + 4 * (rows // height + 1)
            sizes[f"bsr{height}x{width}"] = bytes_
    for bits in (4, 5, 8):
        sizes[f"relative{bits}"] = relative_index(matrix.reshape(-1), bits).nbytes
    return sizes


def smallest_format(array: Matrix) -> tuple[str, int]:
    """The format that takes the fewest bytes, and those bytes.

    Examples:
        >>> smallest_format(np.eye(100, dtype=np.float32))
        ('relative8', 500)
    """
    sizes = format_bytes(array)
    name = min(sizes, key=lambda key: sizes[key])
    return name, sizes[name]


def to_format(array: Matrix, name: str) -> Any:
    """An array in the format that `smallest_format` names; `dense` gives the matrix itself."""
    matrix = as_matrix(array)
    if name.startswith("bsr"):
        height, width = (int(part) for part in name[3:].split("x"))
        return Bsr.of(matrix, (height, width))
    if name.startswith("relative"):
        return relative_index(matrix.reshape(-1), int(name[8:]))
    return _BUILDERS[name](matrix)


def as_matrix(array: Matrix) -> Matrix:
    """The array with its first axis as rows and all others as columns."""
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)


_BUILDERS: dict[str, Callable[[Matrix], Matrix | SparseMatrix | RelativeIndex]] = {
    "dense": np.ascontiguousarray,
    "bitmap": Bitmap.of,
    "coo": Coo.of,
    "csr": Csr.of,
    "csc": Csc.of,
}


def _shape(matrix: Matrix) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


def _starts(rows: Indices, count: int) -> Indices:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int32)


def _blocks(matrix: Matrix, block: tuple[int, int]) -> Matrix:
    """The matrix as shape (block rows, block columns, height, width)."""
    (rows, columns), (height, width) = matrix.shape, block
    if rows % height or columns % width:
        raise ValueError(f"blocks of {height} by {width} do not divide {rows} by {columns}")
    return matrix.reshape(rows // height, height, columns // width, width).transpose(0, 2, 1, 3)
