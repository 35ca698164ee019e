# SPDX-License-Identifier: Apache-2.0
"""Integers times a step that is a power of two finer or coarser from row to row.

Rows that matter more are rounded finer. Divided by its own step a row is integers again, which are coded
like any tensor of integers; what is said beside them is one exponent a row.

    step | exponents of the rows | integers, see `coding`
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.codebook import find_scale
from rarefy.store.fields import Cursor
from rarefy.store.keys import FLOAT, PIECE, histogram, to_keys
from rarefy.store.runs import open_run
from rarefy.store.symbols import plan_run

REACH = 12
"""Rows' exponents lie between minus and plus this."""

LARGEST = (1 << 15) - 1
_TRIED, _LOOK = 16, 24  # rows that may tell the step; columns that are looked at first


class RowSteps(NamedTuple):
    """What a tensor is made of: values = step · 2^exponent · integer.

    Attributes:
        step: its pattern.
        exponents: (rows,) from -REACH to REACH.
        integers: int16, like the tensor.
    """

    step: int
    exponents: NDArray[np.int64]
    integers: NDArray[np.int16]


def find_rows(array: NDArray[Any]) -> RowSteps | None:
    """Steps of the rows of a float tensor, or None if it has none or all rows share one.

    Args:
        array: float16 or float32, two axes or more.
    """
    if array.dtype.name not in ("float16", "float32") or array.ndim < 2 or array.shape[0] < 2:
        return None
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    step = _step_of(rows)
    if step is None:
        return None
    unit = np.array([step], f"u{array.itemsize}").view(array.dtype).astype(np.float64)[0]
    exponents = np.full(rows.shape[0], REACH + 1)
    left = np.flatnonzero(rows.any(axis=1))
    for exponent in range(REACH, -REACH - 1, -1):
        scale = unit * 2.0**exponent
        near = left[_integers(rows[:, :_LOOK], left, scale)]
        near = near[_integers(rows, near, scale)]
        exponents[near] = exponent
        left = left[exponents[left] > REACH]
    used = exponents[exponents <= REACH]
    if left.size or not used.size or used.min() == used.max():
        return None
    exponents[exponents > REACH] = int(np.median(used))
    integers = np.empty(rows.shape, np.int16)
    for part in _parts(rows.shape):
        integers[part] = np.rint(rows[part] / (unit * 2.0 ** exponents[part, None]))
    found = RowSteps(step, exponents, integers.reshape(array.shape))
    same = values_of_rows(found, array.dtype)
    return found if np.array_equal(same, array.view(same.dtype)) else None


def values_of_rows(found: RowSteps, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Patterns of the values, shaped like the tensor."""
    rows = found.integers.reshape(found.exponents.size, -1)
    step = np.array([found.step], f"u{dtype.itemsize}").view(dtype).astype(np.float64)[0]
    values = np.empty(rows.shape, dtype)
    with np.errstate(all="ignore"):
        for part in _parts(rows.shape):
            values[part] = rows[part] * (step * 2.0 ** found.exponents[part, None])
    return values.view(f"u{dtype.itemsize}").reshape(found.integers.shape)


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows that are looked at together."""
    each = max(1, PIECE // max(shape[1], 1))
    for start in range(0, shape[0], each):
        yield slice(start, start + each)


def write_rows(found: RowSteps, dtype: np.dtype[Any], coder: str) -> bytes:
    """Step and exponents; `read_rows` reads them."""
    symbols = (found.exponents + REACH).astype(np.uint8)
    run = plan_run(lambda: symbols, histogram(symbols, 2 * REACH + 1), coder)
    return found.step.to_bytes(dtype.itemsize, "little") + run.encode()


def read_rows(cursor: Cursor, rows: int, dtype: np.dtype[Any]) -> tuple[int, NDArray[np.int64]]:
    """Step and exponents.

    Raises:
        FileError: damaged, or a dtype that is never written so.
    """
    if dtype.name not in ("float16", "float32"):
        raise FileError(f"rows of {dtype.name} have no steps")
    step = int.from_bytes(cursor.take(dtype.itemsize), "little")
    return step, open_run(cursor, rows, 2 * REACH + 1).read(rows).astype(np.int64) - REACH


def _step_of(rows: NDArray[Any]) -> int | None:
    """The pattern of a step of which one of the first rows has multiples."""
    ordered = np.sort(rows[:_TRIED].view(f"u{rows.itemsize}"), axis=1)
    changes = ordered[:, 1:] != ordered[:, :-1]
    most = int(changes.sum(axis=1).argmax())
    best = ordered[most, np.concatenate([[True], changes[most]])]
    if best.size > 2048:
        return None
    found = find_scale(np.sort(to_keys(best, FLOAT)), rows.dtype)
    return None if found is None else found[0]


def _integers(rows: NDArray[Any], chosen: NDArray[Any], scale: float) -> NDArray[np.bool_]:
    """Whether the values of each chosen row are integers times a scale, as far as their precision tells."""
    found = np.empty(chosen.size, dtype=np.bool_)
    precision = np.float32(2.0 ** (-10 if rows.itemsize == 2 else -22))
    with np.errstate(all="ignore"):
        for part in _parts((chosen.size, rows.shape[1])):
            ratio = rows[chosen[part]] / np.float32(scale)
            nearest = np.rint(ratio)
            ratio -= nearest
            np.abs(nearest, out=nearest)
            near = np.abs(ratio, out=ratio) <= precision * nearest
            found[part] = (near & (nearest <= LARGEST)).all(axis=1)
    return found
