# SPDX-License-Identifier: Apache-2.0
"""Codes under contexts: how large a weight is to be expected decides by which table it is coded.

The sum of three scales (of row, column, kernel position; see `scales`) names a weight's context.
Contexts have tables of their own: counts of all codes, or a `ladder` of magnitudes where the codes
are a step times integers. Tables and scales stand in front, so a decoder takes whole rows at a
time, first all weights of the lowest context, then those of the next.

    1 if integers | step and largest integer, or a codebook | scales | lowest context | number of
    contexts | 1 if a ladder | tables | length of the message | message
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store import ans
from rarefy.store.compiled import loops
from rarefy.store.context_tables import Tables, best_tables, conditional_entropy, read_tables
from rarefy.store.fields import BitReader, BitWriter, Cursor, unzigzag, zigzag
from rarefy.store.frequencies import entropy
from rarefy.store.keys import histogram
from rarefy.store.scales import (
    Scales,
    choices,
    flat,
    grid_shape,
    magnitude_scales,
    read_scales,
    write_scales,
)
from rarefy.store.symbols import Coded

MOST_SYMBOLS = 1 << 10
"""Largest alphabet that is coded under contexts."""

_ROWS = 1 << 17
_SAMPLE, _SHORT = 1 << 16, 1 << 12
_MOST_CONTEXTS = 64
_WORTH = 0.996
"""Less than this saving of a long tensor is not worth a decoder's time."""


@dataclass(frozen=True)
class Chosen:
    """Scales, the range of contexts that they lead to, and the tables."""

    scales: Scales
    low: int
    contexts: int
    tables: Tables


def context_of(scales: Scales, low: int, contexts: int, start: int, stop: int) -> Any:
    """Contexts of the weights in the rows from `start` to `stop`, uint8, flat."""
    sums = scales.piece(start, stop)
    return (np.clip(sums, low, low + contexts - 1) - np.int8(low)).astype(np.uint8)


def plan_contexts(
    symbols: NDArray[Any],
    alphabet: int,
    folded: bool,
    shape: tuple[int, ...],
    coder: str,
    always: bool = False,
) -> Coded | None:
    """Plan symbols under contexts, or None where they hardly pay; `ContextReader` reads them.

    Args:
        symbols: shape (n,), unsigned, below `alphabet`, in row-major order of the tensor.
        alphabet: number of symbols.
        folded: whether they stand for 0, -1, 1, -2, 2, …
        shape: of the tensor; a row is decoded as a whole, so tensors of very long rows are refused.
        coder: of the scales, as in `symbols`.
        always: whether a single context will do where more do not pay.
    """
    grid = grid_shape(shape)
    if grid[1] * grid[2] > _ROWS:
        return None
    scales = _best_scales(symbols, alphabet, folded, grid, coder)
    if scales is None and always:
        scales = flat(grid)
    if scales is None:
        return None
    low, counts = context_counts(symbols, alphabet, scales)
    chosen = Chosen(scales, low, counts.shape[0], best_tables(counts, folded))
    head = write_scales(scales, coder)

    def pieces() -> Iterator[bytes]:
        writer = BitWriter()
        writer.golomb(zigzag(chosen.low), 3)
        writer.golomb(chosen.contexts - 1, 2)
        chosen.tables.write(writer)
        body = _message(symbols, grid, chosen, chosen.tables.frequencies(alphabet))
        writer.number(len(body))
        yield head
        yield writer.to_bytes()
        yield body

    return Coded(8 * len(head) + chosen.tables.bits + 64, pieces)


def _best_scales(
    symbols: NDArray[Any],
    alphabet: int,
    folded: bool,
    shape: tuple[int, int, int],
    coder: str,
) -> Scales | None:
    """The axes that make the symbols cheapest, or None for a long tensor that gains too little.

    Long tensors are judged by the entropy of a sample of rows, short ones by what they will take.
    """
    none, short = flat(shape), symbols.size <= _SHORT
    sizes = (((symbols + 1) >> 1) if folded else symbols).reshape(shape)
    found = magnitude_scales(sizes) if shape[0] > 1 else none
    step = 1 if short else max(1, symbols.size // _SAMPLE)
    sample = symbols.reshape(shape)[::step].reshape(-1)

    def bits(scales: Scales) -> float:
        thin = Scales(scales.rows[::step], scales.columns, scales.positions)
        _, counts = context_counts(sample, alphabet, thin)
        if short:
            return best_tables(counts, folded).bits + 8.0 * len(write_scales(scales, coder))
        share = symbols.size / sample.size
        side = sum(entropy(histogram(axis.view(np.uint8), 256)) for axis in scales)
        return conditional_entropy(counts) * share + 2 * np.count_nonzero(counts) + side

    plain = bits(none)
    if not short and bits(found) > _WORTH * plain:
        return None
    options = choices(found) if shape[0] > 1 else []
    return min([(plain, 0, none), *((bits(s), n, s) for n, s in enumerate(options, 1))])[2]


def context_counts(
    symbols: NDArray[Any], alphabet: int, scales: Scales
) -> tuple[int, NDArray[np.int64]]:
    """The lowest context that is well filled, and a histogram of symbols (contexts, alphabet)."""
    rows = max(scales.rows.size, 1)
    width = symbols.size // rows
    least_sum, most_sum = scales.span()
    joint = np.zeros((most_sum - least_sum + 1, alphabet), dtype=np.int64)
    for start, stop in _chunks((rows, width, 1)):
        sums = scales.piece(start, stop).astype(np.int32) - least_sum
        sums *= alphabet
        sums += symbols[start * width : stop * width]
        joint += np.bincount(sums, minlength=joint.size).reshape(joint.shape)
    filled = joint.sum(axis=1).cumsum()
    least = max(24, symbols.size >> 9)
    low = int(np.searchsorted(filled, least))
    high = int(np.searchsorted(filled, filled[-1] - least, side="right"))
    low, high = min(low, high), min(max(low, high), low + _MOST_CONTEXTS - 1)
    counts = joint[low : high + 1].copy()
    counts[0] += joint[:low].sum(axis=0)
    counts[-1] += joint[high + 1 :].sum(axis=0)
    return low + least_sum, counts


def _message(
    symbols: NDArray[Any],
    shape: tuple[int, int, int],
    chosen: Chosen,
    tables: list[NDArray[np.int64]],
) -> bytes:
    """All symbols as one ANS message, chunks of rows and in them contexts in their order."""
    width, parts = shape[1] * shape[2], []
    for start, stop in _chunks(shape):
        part = symbols[start * width : stop * width]
        if chosen.contexts > 1:
            context = context_of(chosen.scales, chosen.low, chosen.contexts, start, stop)
            part = part[np.argsort(context, kind="stable")]
            ends = np.bincount(context, minlength=chosen.contexts).cumsum()
        else:
            ends = np.array([part.size])
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin and np.count_nonzero(tables[number]) > 1:
                parts.append((part[begin:end], number))
            begin = end
    return ans.encode_parts(parts, tables)


def _chunks(shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Rows that are coded together."""
    rows, width = shape[0], max(shape[1] * shape[2], 1)
    each = max(1, _ROWS // width)
    for start in range(0, rows, each):
        yield start, min(start + each, rows)


class ContextReader:
    """Yields the symbols that `plan_contexts` wrote, in row-major order."""

    def __init__(self, cursor: Cursor, alphabet: int, shape: tuple[int, ...]) -> None:
        """Take the symbols of a tensor of this shape from the cursor."""
        self._shape = grid_shape(shape)
        if self._shape[1] * self._shape[2] > _ROWS:
            raise FileError(f"rows of {self._shape[1] * self._shape[2]:,} values are not possible")
        self._scales = read_scales(cursor, self._shape)
        bits = BitReader(cursor)
        self._low, self._contexts = unzigzag(bits.golomb(3)), bits.golomb(2) + 1
        if self._contexts > _MOST_CONTEXTS or abs(self._low) > 127 - _MOST_CONTEXTS:
            raise FileError(f"{self._contexts} contexts from {self._low} on are not possible")
        tables = read_tables(bits, self._contexts, alphabet)
        size = bits.number(cursor.remaining)
        bits.close()
        self._coder = ans.PartsReader(cursor, size, tables)
        self._chunks = _chunks(self._shape)
        self._ready = np.zeros(0, dtype=np.int32)
        self.coding = f"contexts{self._contexts}" if self._contexts > 1 else "contexts"

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` symbols."""
        parts, held = [self._ready], self._ready.size
        while held < count:
            parts.append(self._chunk(*next(self._chunks)))
            held += parts[-1].size
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._ready = joined[count:]
        return joined[:count]

    def _chunk(self, start: int, stop: int) -> NDArray[Any]:
        size = (stop - start) * self._shape[1] * self._shape[2]
        if self._contexts == 1:
            return self._coder.read(0, size)
        fast = loops()
        if fast is not None:
            axes = self._scales.rows[start:stop], self._scales.columns, self._scales.positions
            counts = fast.counted(*axes, self._low, self._contexts)
            return fast.placed(self._parts(counts), counts.cumsum() - counts, *axes, self._low)
        context = context_of(self._scales, self._low, self._contexts, start, stop)
        order = np.argsort(context, kind="stable")
        out = np.empty(size, dtype=np.int32)
        out[order] = self._parts(np.bincount(context, minlength=self._contexts))
        return out

    def _parts(self, counts: NDArray[np.int64]) -> NDArray[np.int32]:
        """So many symbols of each context, one context after the other."""
        parts = [self._coder.read(number, count) for number, count in enumerate(counts.tolist())]
        return np.concatenate(parts)
