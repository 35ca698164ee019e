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


def _opened(cursor: Cursor, size: int) -> Any:
    """A decoder of the message of `size` bytes at the cursor."""
    data = bytes(cursor.take(size))
    if data.endswith(b"\0"):
        raise FileError("an entropy-coded message ends in bytes that no encoder writes")
    words = np.frombuffer(data + bytes(-size % 4), dtype="<u4").astype(np.uint32)
    return _coder(words)


class PartsReader:
    """Yields the symbols of a message of `encode_parts`, part by part."""

    def __init__(self, cursor: Cursor, size: int, tables: Sequence[NDArray[np.int64]]) -> None:
        """Take a message of `size` bytes from the cursor.

        Args:
            tables: frequencies; where only one is positive, its place is the only symbol.

        Raises:
            FileError: the bytes can't be the end of a message.
        """
        self._coder, self._tables = _opened(cursor, size), tables
        self._models: dict[int, Any] = {}

    def read(self, number: int, count: int) -> NDArray[np.int32]:
        """The next `count` symbols, which were coded under table `number`."""
        table = self._tables[number]
        if not count or np.count_nonzero(table) < 2:
            return np.full(count, table.size - 1, dtype=np.int32)
        if number not in self._models:
            self._models[number] = _model(table)
        return np.asarray(self._coder.decode(self._models[number], count), dtype=np.int32)


class AnsReader:
    """Yields the symbols of one `encode`d message in their order, any number at a time."""

    coding = "ans"

    def __init__(self, cursor: Cursor, size: int, frequencies: NDArray[np.int64]) -> None:
        """Take a message of `size` bytes from the cursor.

        Raises:
            FileError: the bytes can't be the end of a message.
        """
        self._coder, self._model = _opened(cursor, size), _model(frequencies)

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` symbols, dtype int32."""
        if not count:
            return np.zeros(0, dtype=np.int32)
        return np.asarray(self._coder.decode(self._model, count))
