# SPDX-License-Identifier: Apache-2.0
"""Small fields of the file format: variable-length integers, a checked cursor, strings of bits.

Everything that a reader takes from a file goes through `Cursor` or `BitReader`, so that a field
that is cut short or out of range ends in one `FileError` before anything is allocated for it.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.golomb import golomb_codes


def varint(value: int) -> bytes:
    """Write a non-negative integer, seven bits a byte, low bits first (LEB128).

    Examples:
        >>> varint(300)
        b'\\xac\\x02'
    """
    if value < 0:
        raise ValueError(f"a varint holds integers from 0 on, not {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """Fold signed integers into non-negative ones: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Undo `zigzag`."""
    return -(value + 1 >> 1) if value & 1 else value >> 1


class Cursor:
    """Reads a run of bytes from front to back and never past its end."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = memoryview(data).cast("B")
        self.position = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self.data) - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, not copied.

        Raises:
            FileError: fewer bytes are left.
        """
        if not 0 <= count <= self.remaining:
            raise FileError(f"{count} bytes are announced where {self.remaining} are left")
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def byte(self) -> int:
        """The next byte as an integer."""
        return self.take(1)[0]

    def varint(self, limit: int = 1 << 62) -> int:
        """The next `varint`, at most `limit`.

        Raises:
            FileError: it is cut short, longer than ten bytes or larger than `limit`.
        """
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > limit:
                    raise FileError(f"a field states {value} where at most {limit} is possible")
                return value
        raise FileError("an integer field has no end")


class BitWriter:
    """Collects bit fields, most significant bit first."""

    def __init__(self) -> None:
        self._whole = bytearray()
        self._open, self._width = 0, 0

    def write(self, value: int, width: int) -> None:
        """Append `value` in exactly `width` bits."""
        self._open = self._open << width | value
        self._width += width
        if self._width >= 512:
            rest = self._width % 8
            self._whole += (self._open >> rest).to_bytes(self._width // 8, "big")
            self._open, self._width = self._open & (1 << rest) - 1, rest

    def golomb(self, value: int, order: int = 0) -> None:
        """Append a non-negative integer as exponential-Golomb code; order 0 is Elias' gamma.

        Costs `2 * bit_length(value + 2**order) - 1 - order` bits.
        """
        shifted = value + (1 << order)
        self.write(shifted, 2 * shifted.bit_length() - 1 - order)

    def golombs(self, values: list[int], order: int) -> None:
        """Append many integers in one order; the same bits as `golomb` for each, but faster."""
        base, joined, width = 1 << order, self._open, self._width
        for value in values:
            shifted = value + base
            size = 2 * shifted.bit_length() - 1 - order
            joined = joined << size | shifted
            width += size
            if width >= 512:
                self._open, self._width = joined, width
                self.write(0, 0)
                joined, width = self._open, self._width
        self._open, self._width = joined, width

    def number(self, value: int) -> None:
        """Append an integer below 2**63 of unknown size: six bits for its length, then itself."""
        width = value.bit_length()
        self.write(width, 6)
        self.write(value - (1 << width >> 1), max(width - 1, 0))

    def to_bytes(self) -> bytes:
        """All bits, filled up with zeros to a whole byte."""
        filled = -self._width % 8
        tail = (self._open << filled).to_bytes((self._width + filled) // 8, "big")
        return bytes(self._whole) + tail


class BitReader:
    """Takes bit fields from a cursor; `close` moves the cursor behind the last byte touched."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._bit = 8 * cursor.position
        self._window, self._end = 0, self._bit  # an integer of the bytes ahead, and where it ends

    def read(self, width: int) -> int:
        """The next `width` bits.

        Raises:
            FileError: the bytes end before.
        """
        end = self._bit + width
        if end > self._end:
            self._look_ahead(width)
        if end > self._end:
            raise FileError("a bit field runs over the end of its bytes")
        self._bit = end
        return (self._window >> self._end - end) & ((1 << width) - 1)

    def golomb(self, order: int = 0) -> int:
        """The next exponential-Golomb code of this order, below 2**64."""
        if self._bit + 72 > self._end:
            self._look_ahead(72)
        bits = self._end - self._bit
        zeros = bits - (self._window & (1 << bits) - 1).bit_length()
        if zeros > 64 or zeros >= bits:
            raise FileError("an exponential-Golomb code has no end")
        width = 2 * zeros + 1 + order
        return self.read(width) - (1 << order)

    def _look_ahead(self, width: int) -> None:
        """Open the window at the present bit, for `width` bits at least where there are so many."""
        first = self._bit // 8
        data = self._cursor.data[first : first + max(width + 14 >> 3, 48)]
        self._window, self._end = int.from_bytes(data, "big"), 8 * (first + len(data))

    def golombs(self, count: int, order: int) -> list[int]:
        """The next `count` codes of one order; as `golomb` for each, but faster and of any size."""
        values: list[int] = []
        while len(values) < count:
            first, missing = self._bit // 8, count - len(values)
            ahead = bytes(self._cursor.data[first : first + missing + 16])
            more, place = golomb_codes(ahead, self._bit % 8, missing, order)
            self._bit = 8 * first + place
            if not more:
                break
            values += more
        # Codes of more than a word, and damage, take the careful way.
        return values + [self.golomb(order) for _ in range(count - len(values))]

    def number(self, limit: int = 1 << 62) -> int:
        """The next integer written by `BitWriter.number`, at most `limit`."""
        width = self.read(6)
        value = (1 << width >> 1) | self.read(max(width - 1, 0))
        if value > limit:
            raise FileError(f"a field states {value} where at most {limit} is possible")
        return value

    def close(self) -> None:
        """Leave the cursor at the first byte that was not touched."""
        self._cursor.position = (self._bit + 7) // 8


def write_increasing(writer: BitWriter, values: list[int]) -> None:
    """Append strictly increasing non-negative integers: contiguous runs cost a few bits in all.

    The first value, then one bit: 1 for a run without holes, otherwise the differences minus one
    in the exponential-Golomb order that suits them best.
    """
    writer.golomb(values[0], 6)
    steps = [b - a - 1 for a, b in pairwise(values)]
    writer.write(int(not any(steps)), 1)
    if any(steps):
        likely = (sum(steps) // len(steps) + 1).bit_length() - 1
        orders, sizes = range(max(likely - 4, 0), min(likely + 3, 64)), np.array(steps, np.float64)
        order = min(orders, key=lambda order: _golomb_bits(sizes, order))
        writer.write(order, 6)
        writer.golombs(steps, order)


def read_increasing(reader: BitReader, count: int) -> list[int]:
    """Undo `write_increasing` for `count` values."""
    values = [reader.golomb(6)]
    if reader.read(1):
        return list(range(values[0], values[0] + count))
    order = reader.read(6)
    for step in reader.golombs(count - 1, order):
        values.append(values[-1] + 1 + step)
    return values


def _golomb_bits(values: NDArray[np.float64], order: int) -> int:
    """Of all values together; at most a bit is wrong for one beyond 2**53."""
    lengths = np.frexp(values + float(1 << order))[1]
    return 2 * int(lengths.sum()) - (1 + order) * values.size
