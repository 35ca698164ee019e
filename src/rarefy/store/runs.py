# SPDX-License-Identifier: Apache-2.0
"""Reads runs of small integers as `symbols` writes them, any number of symbols at a time.

A run begins with three bits that name its form; then follow the form's parameters and, from the
next whole byte on, the coded symbols. No reader ever holds more than the coded bytes and what it
was asked for.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store import ans, frequencies, huffman
from rarefy.store.bits import packed_bytes, trit_bytes, unpack, unpack_trits
from rarefy.store.fields import BitReader, Cursor
from rarefy.store.smooth import read_smooth
from rarefy.store.text import TextReader

CONSTANT, FIXED, TERNARY, HUFFMAN, ANS, GEOMETRIC, BERNOULLI, LZ = range(8)
"""The forms of a run, as numbered in a file."""


class SymbolReader(Protocol):
    """What every form's decoder offers."""

    @property
    def coding(self) -> str:
        """The form's name for people."""

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` symbols as integers below the alphabet's size."""


def open_run(cursor: Cursor, count: int, alphabet: int) -> SymbolReader:
    """A reader of the run of `count` symbols below `alphabet` at the cursor, which moves behind it.

    Raises:
        FileError: damaged, cut short or of an unknown form.
    """
    if not count or alphabet == 1:
        return _Constant(0)
    bits = BitReader(cursor)
    form = bits.read(3)
    if form == CONSTANT:
        value = bits.golomb(4)
        bits.close()
        return _Constant(_below(value, alphabet))
    if form in (FIXED, TERNARY):
        first, width = _below(bits.golomb(), alphabet), bits.read(6) if form == FIXED else 0
        bits.close()
        kind, size = _Packed, packed_bytes(count, width)
        if form == TERNARY:
            kind, size = _Ternary, trit_bytes(count)
        return kind(cursor.take(size), width, count, first, alphabet)
    if form == LZ:
        size = bits.number(cursor.remaining)
        bits.close()
        return _Repeating(TextReader(cursor.take(size), count), alphabet)
    return _open_coded(cursor, bits, form, count, alphabet)


def _open_coded(
    cursor: Cursor, bits: BitReader, form: int, count: int, alphabet: int
) -> SymbolReader:
    first = 0
    if form in (HUFFMAN, ANS):
        first = bits.golomb()
        size = _below(bits.golomb(4), min(alphabet, frequencies.MOST_SYMBOLS + 1)) + 1
        _below(first + size - 1, alphabet)
        if form == HUFFMAN:
            lengths = read_smooth(bits, size)
            bits.close()
            if lengths.max() > huffman.LIMIT:
                raise FileError(f"a Huffman code has words of {lengths.max()} bits")
            reader = huffman.HuffmanReader(cursor, count, lengths.astype(np.uint8))
            return _Shifted(reader, first) if first else reader
        table = frequencies.read_counted(bits, size)
    elif form == GEOMETRIC:
        table = frequencies.geometric(bits.read(16), _below(alphabet, 1 << 16))
    else:
        table = frequencies.bernoulli(bits.read(16), _below(alphabet.bit_length() - 1, 9))
    length = bits.number(cursor.remaining)
    bits.close()
    if table.size < 2:
        raise FileError("a frequency table has a single symbol")
    coded = ans.AnsReader(cursor, length, table)
    return _Shifted(coded, first) if first else coded


def _below(value: int, limit: int) -> int:
    if value >= limit:
        raise FileError(f"a field states {value} where less than {limit} is possible")
    return value


def _checked(symbols: NDArray[Any], alphabet: int) -> NDArray[Any]:
    if symbols.size:
        _below(int(symbols.max()), alphabet)
    return symbols


class _Constant:
    coding = "constant"

    def __init__(self, value: int) -> None:
        self._value = value

    def read(self, count: int) -> NDArray[Any]:
        return np.full(count, self._value, dtype=np.uint16)


class _Packed:
    coding = "fixed"

    def __init__(self, data: memoryview, width: int, count: int, first: int, alphabet: int) -> None:
        self._data, self._width, self._count = data, width, count
        self._first, self._alphabet, self._place = first, alphabet, 0
        self._sure = first + self._largest(width) < alphabet

    def _largest(self, width: int) -> int:
        return (1 << width) - 1

    def _unpack(self, start: int, stop: int) -> Any:
        return unpack(self._data, self._width, self._count, start, stop)

    def read(self, count: int) -> NDArray[Any]:
        start, self._place = self._place, self._place + count
        values = self._unpack(start, self._place)
        if self._first:
            values = values.astype(np.int64) + self._first
        return values if self._sure else _checked(values, self._alphabet)


class _Ternary(_Packed):
    coding = "ternary"

    def _largest(self, width: int) -> int:
        return 2

    def _unpack(self, start: int, stop: int) -> Any:
        return unpack_trits(self._data, self._count, start, stop)


class _Repeating:
    coding = "lz"

    def __init__(self, reader: TextReader, alphabet: int) -> None:
        self._reader, self._alphabet = reader, alphabet

    def read(self, count: int) -> NDArray[Any]:
        return _checked(np.frombuffer(self._reader.read(count), dtype=np.uint8), self._alphabet)


class _Shifted:
    def __init__(self, reader: SymbolReader, first: int) -> None:
        self._reader, self._first, self.coding = reader, first, reader.coding

    def read(self, count: int) -> NDArray[Any]:
        return self._reader.read(count).astype(np.int32) + self._first
