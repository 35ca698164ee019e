# SPDX-License-Identifier: Apache-2.0
"""One tensor as bytes in the smallest of several codings; bit for bit, for every dtype.

A coding is a layout (dense, bitmap or gaps) times a form of values (codebook or planes); dense codes
may stand under contexts. The
encoder finds out what the tensor is: few distinct values, one value that fills much of it, a
counter. Costs are computed from histograms; short tensors are coded in every way that may pay and
the shortest is kept. The first byte names the coding; `decoding` reads it.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.store.adaptive import MOST
from rarefy.store.decoding import (
    BACKGROUND,
    BITMAP,
    COLUMNS,
    CONTEXTS,
    DENSE,
    DIFFERENCES,
    GAPS,
    MIXED,
    RAW,
    ROWS,
    TRELLIS,
)
from rarefy.store.fields import varint
from rarefy.store.keys import PIECE, is_counter, kind_of, patterns, real_of
from rarefy.store.positions import plan_bitmap, plan_gaps
from rarefy.store.row_steps import find_rows, write_rows
from rarefy.store.symbols import Coded
from rarefy.store.values import Codes, Values, count_others, others, values_of

_SHORT = 1 << 12
_LEAST_SHARE = 0.3


def encode_tensor(array: NDArray[Any], coder: str = "auto") -> bytes:
    """The tensor's values in the smallest coding; dtype and shape have to be kept elsewhere.

    Args:
        array: any shape, of a dtype in `keys.DTYPES`.
        coder: "auto", "huffman", "ans" (which entropy coder), "raw" (the bytes as they are), or
            "mixing" (as "auto", and mixed contexts for what is small enough: smallest and slowest).
    """
    return b"".join(encode_pieces(array, coder))


def encode_pieces(array: NDArray[Any], coder: str = "auto") -> Iterable[bytes]:
    """What `encode_tensor` gives, in pieces that are made one after the other."""
    if not array.size:
        return []
    array = np.asarray(array, order="C")  # once for all that look at it
    pattern, kind, real = patterns(array), kind_of(array.dtype), real_of(array.dtype)
    raw = _joined(bytes([RAW]), _little(pattern))
    if coder == "raw":
        return raw.pieces()
    values, slow = values_of(pattern, kind, real), coder == "mixing"
    coder = "auto" if slow else coder
    candidates = [raw, _dense(values, 0, coder)]
    rows = array.shape[0] if array.ndim > 1 else 1
    candidates += _sparse(values, pattern, rows, coder)
    if isinstance(values, Codes) and coder in ("auto", "ans") and array.dtype.kind != "c":
        tag, under = TRELLIS, values.plan_trellis(array.shape, coder)
        if under is None:
            tag, under = CONTEXTS, values.plan_contexts(array.shape, coder)
        candidates += [_joined(bytes([DENSE | tag]), under)] if under else []
        if slow and array.size <= MOST:
            flags, mixed = values.mixed(array.shape)
            head = bytes([MIXED | flags])
            candidates.append(Coded(8 * len(mixed) + 8, lambda: [head, mixed]))
    found = find_rows(array)
    if found is not None:
        parts = [bytes([ROWS]), write_rows(found, real, coder)]
        parts.append(encode_tensor(found.integers, "mixing" if slow else coder))
        candidates.append(Coded(8 * sum(map(len, parts)), lambda: parts))
    if is_counter(real):
        differences = np.diff(pattern, prepend=pattern.dtype.type(0))
        candidates.append(_dense(values_of(differences, kind, real), DIFFERENCES, coder))
    if array.size > _SHORT:
        return min(candidates, key=lambda found: found.bits).pieces()
    return [min((found.encode() for found in candidates), key=len)]


def _little(pattern: NDArray[Any]) -> Coded:
    def pieces() -> Iterator[bytes]:
        for start in range(0, pattern.size, PIECE):
            piece = pattern[start : start + PIECE]
            yield piece.astype(piece.dtype.newbyteorder("<"), copy=False).tobytes()

    return Coded(8 * pattern.nbytes, pieces)


def _joined(head: bytes, *parts: Coded) -> Coded:
    return Coded(
        8 * len(head) + sum(part.bits for part in parts),
        lambda: chain([head], *(part.pieces() for part in parts)),
    )


def _dense(values: Values, extra: int, coder: str) -> Coded:
    return _joined(bytes([DENSE | values.form | extra]), values.plan(None, coder))


def _sparse(values: Values, pattern: NDArray[Any], rows: int, coder: str) -> list[Coded]:
    """The cheapest sparse plan, if one value fills enough of the tensor to make one worth a try.

    Positions are scanned row by row or column by column, whichever makes them cheaper.
    """
    count = count_others(values, pattern.size)
    if not _LEAST_SHARE * pattern.size <= pattern.size - count < pattern.size:
        return []
    places = others(values, pattern.size, count)
    scans = [(places, places, 0)]
    if 1 < rows < pattern.size:
        scans.append((*_by_columns(places, rows, pattern.size // rows), COLUMNS))
    options = []
    for scanned, order, columns in scans:
        options.append((plan_gaps(scanned, coder), order, GAPS | columns))
        options.append((plan_bitmap(scanned, pattern.size, coder), order, BITMAP | columns))
    positions, order, tag = min(options, key=lambda option: option[0].bits)
    head = bytes([tag | values.form | (BACKGROUND if values.common else 0)])
    if values.common:
        head += values.common.to_bytes(pattern.dtype.itemsize, "little")
    return [_joined(head + varint(places.size), positions, values.plan(order, coder))]


def _by_columns(places: NDArray[Any], rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Places in a column-by-column scan, increasing, and the row-by-row place of each."""
    marks = np.zeros(rows * columns, dtype=bool)
    marks[places] = True
    scanned = marks.reshape(rows, columns).T.reshape(-1)
    moved, back, end = np.empty_like(places), np.empty_like(places), 0
    for start in range(0, scanned.size, PIECE):
        found = np.flatnonzero(scanned[start : start + PIECE]) + start
        column, row = np.divmod(found, rows)
        begin, end = end, end + found.size
        moved[begin:end], back[begin:end] = found, row * columns + column
    return moved, back
