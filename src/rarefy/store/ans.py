# SPDX-License-Identifier: Apache-2.0
"""Asymmetric numeral systems: messages within a few bytes of their information content.

J. Duda, "Asymmetric numeral systems", arXiv:1311.2540, through the library `constriction`:
a 64-bit state, 32-bit words, 24 bits of precision. Symbol i of an alphabet of A symbols with
frequencies f takes the interval that starts at i + floor(cumulated f_i * ((2**24 - A) / sum f)) in
double precision, so a file can be decoded without that library too. The words are stored
little-endian; zero bytes at the very end carry nothing and are left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.compiled import PRECISION, loops
from rarefy.store.fields import Cursor

_CHUNK = 1 << 18


def _model(frequencies: NDArray[np.int64]) -> Any:
    import constriction

    return constriction.stream.model.Categorical(frequencies.astype(np.float64), perfect=False)


def _coder(*words: NDArray[np.uint32]) -> Any:
    import constriction

    return constriction.stream.stack.AnsCoder(*words)


def encode(symbols: NDArray[Any], frequencies: NDArray[np.int64]) -> bytes:
    """Code symbols 0 … A-1 under a table of A >= 2 positive frequencies.

    Args:
        symbols: shape (n,), any integer dtype, every entry below A.
        frequencies: shape (A,), sum below 2**23.
    """
    return encode_parts([(symbols, 0)], [frequencies])


def encode_parts(
    parts: Sequence[tuple[NDArray[Any], int]], tables: Sequence[NDArray[np.int64]]
) -> bytes:
    """Code several runs of symbols, each under the table whose number stands beside it.

    Args:
        parts: in the order in which they will be read.
        tables: as in `encode`; those of a single symbol must not be used.
    """
    coder, models = _coder(), {}
    # Last in, first out: the tail goes first, in pieces that bound the copies made.
    for symbols, number in reversed(parts):
        if number not in models:
            models[number] = _model(tables[number])
        for start in reversed(range(0, symbols.size, _CHUNK)):
            coder.encode_reverse(symbols[start : start + _CHUNK].astype(np.int32), models[number])
    return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class _Message:
    """The symbols of a message in their order, read by `constriction` or by the compiled loop."""

    def __init__(self, cursor: Cursor, size: int) -> None:
        data = bytes(cursor.take(size))
        if data.endswith(b"\0"):
            raise FileError("an entropy-coded message ends in bytes that no encoder writes")
        words = np.frombuffer(data + bytes(-size % 4), dtype="<u4").astype(np.uint32)
        self._loops = loops(size)
        if self._loops is None:
            self._coder = _coder(words)
            return
        self._words, self._place, self._state = words, max(words.size - 2, 0), np.uint64(0)
        for word in words[self._place :][::-1].tolist():
            self._state = self._state << np.uint64(32) | np.uint64(word)

    def model(self, table: NDArray[np.int64]) -> Any:
        """What `read` asks for, from a table of two frequencies or more."""
        return _model(table) if self._loops is None else _bounds(table)

    def read(self, model: Any, count: int) -> NDArray[np.int32]:
        """The next `count` symbols."""
        if self._loops is None:
            return np.asarray(self._coder.decode(model, count), dtype=np.int32)
        out = np.empty(count, dtype=np.int32)
        self._place, state = self._loops.decode(self._words, self._place, self._state, model, out)
        self._state = np.uint64(state)
        return out


def _bounds(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Where the interval of each symbol begins, and the end of the last one, shape (A + 1,)."""
    sums = np.concatenate([np.zeros(1), np.cumsum(frequencies, dtype=np.float64)])
    free = (1 << PRECISION) - frequencies.size
    bounds = (sums * (free / sums[-1])).astype(np.uint32) + np.arange(sums.size, dtype=np.uint32)
    bounds[-1] = 1 << PRECISION
    return bounds


class PartsReader:
    """Yields the symbols of a message of `encode_parts`, part by part."""

    def __init__(self, cursor: Cursor, size: int, tables: Sequence[NDArray[np.int64]]) -> None:
        """Take a message of `size` bytes from the cursor.

        Args:
            tables: frequencies; where only one is positive, its place is the only symbol.

        Raises:
            FileError: the bytes can't be the end of a message.
        """
        self._message, self._tables = _Message(cursor, size), tables
        self._models: dict[int, Any] = {}

    def read(self, number: int, count: int) -> NDArray[np.int32]:
        """The next `count` symbols, which were coded under table `number`."""
        table = self._tables[number]
        if not count or np.count_nonzero(table) < 2:
            return np.full(count, table.size - 1, dtype=np.int32)
        if number not in self._models:
            self._models[number] = self._message.model(table)
        return self._message.read(self._models[number], count)


class AnsReader:
    """Yields the symbols of one `encode`d message in their order, any number at a time."""

    coding = "ans"

    def __init__(self, cursor: Cursor, size: int, frequencies: NDArray[np.int64]) -> None:
        """Take a message of `size` bytes from the cursor.

        Raises:
            FileError: the bytes can't be the end of a message.
        """
        self._message = _Message(cursor, size)
        self._model = self._message.model(frequencies)

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` symbols, dtype int32."""
        if not count:
            return np.zeros(0, dtype=np.int32)
        return self._message.read(self._model, count)
