# SPDX-License-Identifier: Apache-2.0
"""Tensors as unsigned integers whose size grows with the magnitude of the value.

The *pattern* of a value is its bytes read as an unsigned integer. Its *key* is a permutation of the
pattern: for floats the sign moves to the lowest bit, so that the exponent stands in front; signed
integers are folded (0, -1, 1, -2, …); others stay. Both ways are exact for every pattern, NaN
payloads and negative zeros included. Key 0 is the value zero.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, SIGNED, UNSIGNED = range(3)

PIECE = 1 << 17
"""Values that are looked at together, so that what is made of them stays in the processor's cache."""

DTYPES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "int4",
    "uint4",
    "int2",
    "uint2",
)
"""Names of all dtypes that a file can hold; the place in this list is the number in the file."""


def dtype_named(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name in `DTYPES`; those beyond numpy's own come from `ml_dtypes`."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


@cache
def kind_of(dtype: np.dtype[Any]) -> int:
    """Which of the three foldings a dtype gets."""
    if "float" in dtype.name or "complex" in dtype.name:
        return UNSIGNED if dtype.name == "float8_e8m0fnu" else FLOAT
    return SIGNED if dtype.name.startswith("int") else UNSIGNED


@cache
def real_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of one pattern's value: that of the parts for complex numbers, else the same."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def is_counter(dtype: np.dtype[Any]) -> bool:
    """Whether differences between neighbours may be simpler than the values: wide integers."""
    return dtype.kind in "iu" and dtype.itemsize > 1


def patterns(array: NDArray[Any]) -> NDArray[Any]:
    """The patterns of all values in row-major order, shape (n,), unsigned; complex ones give two.

    Copies only what is not contiguous already, or not in this machine's byte order.
    """
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    return native.reshape(-1).view(f"u{real_of(array.dtype).itemsize}")


def to_keys(pattern: NDArray[Any], kind: int) -> NDArray[Any]:
    """Keys of patterns, same shape and dtype."""
    one, top = pattern.dtype.type(1), pattern.dtype.type(8 * pattern.dtype.itemsize - 1)
    if kind == FLOAT:
        return (pattern << one) | (pattern >> top)
    if kind == SIGNED:
        sign = pattern >> top
        return (pattern << one) ^ (~sign + one)
    return pattern


def key_bits(pattern: NDArray[Any], kind: int, rest: int, bits: int) -> NDArray[Any]:
    """The `bits` bits of all keys that have `rest` more behind them, same shape and dtype.

    Examples:
        >>> key_bits(np.array([-1.5], np.float32).view(np.uint32), FLOAT, 24, 8).tolist()
        [127]
    """
    mask = pattern.dtype.type((1 << bits) - 1)
    if kind == FLOAT and rest:  # a key's upper bits are a pattern's behind its sign
        return (pattern >> pattern.dtype.type(rest - 1)) & mask
    return (to_keys(pattern, kind) >> pattern.dtype.type(rest)) & mask


def from_keys(key: NDArray[Any], kind: int) -> NDArray[Any]:
    """Undo `to_keys`."""
    one, top = key.dtype.type(1), key.dtype.type(8 * key.dtype.itemsize - 1)
    if kind == FLOAT:
        pattern = key >> one
        pattern |= key << top
        return pattern
    if kind == SIGNED:
        return (key >> one) ^ (~(key & one) + one)
    return key


def histogram(values: NDArray[Any], size: int) -> NDArray[np.int64]:
    """How often each of the integers below `size` occurs, shape (size,); widens a piece at a time.

    Examples:
        >>> histogram(np.array([2, 0, 2], dtype=np.uint8), 4).tolist()
        [1, 0, 2, 0]
    """
    if values.size <= PIECE:
        return np.bincount(values, minlength=size)
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, values.size, PIECE):
        counts += np.bincount(values[start : start + PIECE], minlength=size)
    return counts


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Sorted distinct values of an unsigned array (sorting beats numpy's hashing on full tensors).

    Examples:
        >>> distinct(np.array([3, 1, 3], dtype=np.uint8)).tolist()
        [1, 3]
    """
    ordered = np.sort(values)
    first = np.ones(ordered.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def count_distinct(array: NDArray[Any]) -> int:
    """How many different bit patterns the values of an array have."""
    pattern = patterns(array)
    if array.dtype.kind == "c":
        return len(np.unique(pattern.reshape(-1, 2), axis=0))
    return distinct(pattern).size


def count_nonzero(array: NDArray[Any]) -> int:
    """How many values are neither 0 nor -0; works for every dtype of `DTYPES`."""
    pattern, name = patterns(array), array.dtype.name
    if kind_of(array.dtype) == FLOAT and not name.endswith("fnuz"):
        small = {"float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6}
        sign = small.get(name, 8 * pattern.dtype.itemsize) - 1
        pattern = pattern & pattern.dtype.type((1 << sign) - 1)
    if array.dtype.kind == "c":
        pattern = pattern.reshape(-1, 2).max(axis=1) if array.size else pattern
    return int(np.count_nonzero(pattern))
