# SPDX-License-Identifier: Apache-2.0
"""One tensor from its coded bytes, in pieces, so that little more than the tensor is allocated.

First byte: layout in two bits (dense, bitmap, gaps, raw), then flags: values are planes (4),
positions are scanned by columns (8), values are differences (16), the value that fills the tensor
is not zero and follows (32), values are codes under contexts (64; with 8, along a trellis) or under
mixed contexts (128, and `adaptive`'s flags), rows have steps of their own (192). Sparse layouts
go on with that value, the number of other values, their positions; all end with the values.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.adaptive import COARSE, LISTED, SQUARES, MixedReader
from rarefy.store.codebook import CodebookReader
from rarefy.store.fields import Cursor
from rarefy.store.keys import kind_of, real_of
from rarefy.store.lattice import CodesReader
from rarefy.store.planes import PlanesReader
from rarefy.store.positions import BitmapReader, GapReader
from rarefy.store.row_steps import RowSteps, read_rows, values_of_rows
from rarefy.store.trellis import TrellisReader
from rarefy.store.values import PLANES

DENSE, BITMAP, GAPS, RAW = range(4)
COLUMNS, DIFFERENCES, BACKGROUND, CONTEXTS, MIXED = 8, 16, 32, 64, 128
TRELLIS = CONTEXTS | 8
ROWS = MIXED | CONTEXTS
_MIXED = {MIXED | flags | squares for flags in (0, LISTED, COARSE) for squares in (0, SQUARES)}

_CHUNK = 1 << 16
_MOST_BYTES = np.iinfo(np.intp).max


def decode_tensor(payload: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The tensor that `coding.encode_tensor` made `payload` from.

    Allocates the tensor, and beside it no more than a few times the payload and one megabyte.

    Raises:
        FileError: damaged, cut short, or not of this dtype and shape.
    """
    if not prod(shape):
        if prod(size for size in shape if size) * dtype.itemsize > _MOST_BYTES:
            raise FileError(f"no array can have the shape {shape}")
        return np.zeros(shape, dtype=dtype)
    cursor = Cursor(payload)
    pattern = _opened(cursor, dtype, shape).decode()
    if cursor.remaining:
        raise FileError(f"{cursor.remaining} bytes are left over behind the values")
    return pattern.view(dtype).reshape(shape)


def coding_name(payload: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """The coding in words, such as "gaps(ans)+codebook+ans", "planes+ans", "raw" or "empty"."""
    return _opened(Cursor(payload), dtype, shape).coding if prod(shape) else "empty"


def _opened(
    cursor: Cursor, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> "_Raw | _Dense | _Rows":
    tag, real = cursor.byte(), real_of(dtype)
    size = prod(shape) * (dtype.itemsize // real.itemsize)
    if tag == RAW:
        return _Raw(cursor, size, real)
    if tag & 3 == DENSE and not tag & ~(PLANES | DIFFERENCES):
        return _Dense(_open_values(cursor, tag, size, dtype), tag, size, dtype)
    if tag == DENSE | CONTEXTS and dtype == real:
        values = CodesReader(cursor, shape, kind_of(dtype), real)
        return _Dense(values, tag, size, dtype)
    if tag == ROWS and len(shape) > 1:
        return _Rows(cursor, shape, dtype)
    if tag == DENSE | TRELLIS and dtype == real:
        return _Dense(TrellisReader(cursor, shape, kind_of(dtype), real), 0, size, dtype)
    if tag in _MIXED and dtype == real:
        return _Dense(MixedReader(cursor, shape, kind_of(dtype), real, tag), 0, size, dtype)
    if tag & 3 in (BITMAP, GAPS) and not tag & ~(3 | PLANES | COLUMNS | BACKGROUND):
        rows = shape[0] if tag & COLUMNS and len(shape) > 1 else 1
        return _Sparse(cursor, tag, size, dtype, rows)
    raise FileError(f"coding {tag} is unknown to this version")


def _open_values(cursor: Cursor, tag: int, count: int, dtype: np.dtype[Any]) -> Any:
    form = PlanesReader if tag & PLANES else CodebookReader
    return form(cursor, count, kind_of(dtype), real_of(dtype))


class _Raw:
    coding = "raw"

    def __init__(self, cursor: Cursor, size: int, real: np.dtype[Any]) -> None:
        self._data, self._type = cursor.take(size * real.itemsize), f"<u{real.itemsize}"

    def decode(self) -> NDArray[Any]:
        return np.frombuffer(self._data, self._type).astype(self._type.replace("<", "="))


class _Rows:
    def __init__(self, cursor: Cursor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._step, self._exponents = read_rows(cursor, shape[0], dtype)
        if cursor.remaining and cursor.data[cursor.position] == ROWS:
            raise FileError("integers have no steps")
        self._shape, self._dtype = shape, dtype
        self._integers = _opened(cursor, np.dtype(np.int16), shape)
        self.coding: str = f"rows+{self._integers.coding}"

    def decode(self) -> NDArray[Any]:
        integers = self._integers.decode().view(np.int16).reshape(self._shape)
        found = RowSteps(self._step, self._exponents, integers)
        return values_of_rows(found, self._dtype).reshape(-1)


class _Dense:
    def __init__(self, values: Any, tag: int, size: int, dtype: np.dtype[Any]) -> None:
        self._values = values
        self._size, self._type = size, np.dtype(f"u{real_of(dtype).itemsize}")
        self._differences = bool(tag & DIFFERENCES)
        self.coding: str = self._values.coding + ("+differences" if self._differences else "")

    def decode(self) -> NDArray[Any]:
        out = np.empty(self._size, dtype=self._type)
        for start in range(0, self._size, _CHUNK):
            piece = out[start : start + _CHUNK]
            piece[:] = self._values.read(piece.size)
        return np.cumsum(out, dtype=self._type, out=out) if self._differences else out


class _Sparse(_Dense):
    def __init__(
        self, cursor: Cursor, tag: int, size: int, dtype: np.dtype[Any], rows: int
    ) -> None:
        width = real_of(dtype).itemsize
        self._background = 0
        if tag & BACKGROUND:
            self._background = int.from_bytes(cursor.take(width), "little")
        self._rows, count = rows, cursor.varint(size)
        layout: Callable[..., BitmapReader | GapReader]
        layout = BitmapReader if tag & 3 == BITMAP else GapReader
        self._positions = layout(cursor, size, count)
        super().__init__(_open_values(cursor, tag, count, dtype), 0, count, dtype)
        self._total = size
        self.coding = f"{self._positions.coding}+{self._values.coding}"

    def decode(self) -> NDArray[Any]:
        out = np.full(self._total, self._background, dtype=self._type)
        columns = self._total // self._rows
        for places in self._positions.pieces():
            if self._rows > 1:
                column, row = np.divmod(places, self._rows)
                places = row * columns + column
            out[places] = self._values.read(places.size)
        return out
