# SPDX-License-Identifier: Apache-2.0
"""Arithmetic coding of single bits, each with a chance of its own, down to the last byte.

G. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979, in
its carry-free form: an interval of 32 bits is cut in proportion to the chances, and leading bytes
that are settled are written. The message ends in as few bytes as name a number in the interval;
zero bytes behind them are left out.
"""

from typing import Protocol

from rarefy.errors import FileError
from rarefy.store.fields import Cursor

ONE = 1 << 16
"""Chances are counted in 65536ths."""

_TOP = (1 << 32) - 1


class BitCoder(Protocol):
    """What encoder and decoder have in common, so that one model can drive either."""

    def code(self, bit: int, chance: int) -> int:
        """Write `bit`, or read it (then the argument counts for nothing); returns the bit.

        Args:
            bit: 0 or 1.
            chance: of a 1 in 65536ths, 1 to 65535.
        """


class BitEncoder(BitCoder):
    """Writes bits."""

    def __init__(self) -> None:
        self._low, self._high, self._out = 0, _TOP, bytearray()

    def code(self, bit: int, chance: int) -> int:
        """Write one bit."""
        middle = self._low + ((self._high - self._low) * chance >> 16)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) >> 24:
            self._out.append(self._high >> 24)
            self._low = (self._low & 0xFFFFFF) << 8
            self._high = (self._high & 0xFFFFFF) << 8 | 255
        return bit

    def message(self) -> bytes:
        """All bits as bytes; call once, at the end."""
        for count in range(5):
            shift = 32 - 8 * count
            value = (self._low + (1 << shift) - 1) >> shift << shift
            if value <= self._high:
                self._out += value.to_bytes(4, "big")[:count]
                break
        return bytes(self._out.rstrip(b"\0"))


class BitDecoder(BitCoder):
    """Reads bits."""

    def __init__(self, cursor: Cursor, size: int) -> None:
        """Take a message of `size` bytes from the cursor.

        Raises:
            FileError: it ends in a byte that no encoder writes.
        """
        self._data = bytes(cursor.take(size))
        if self._data.endswith(b"\0"):
            raise FileError("an entropy-coded message ends in bytes that no encoder writes")
        self._low, self._high, self._place = 0, _TOP, 4
        self._value = int.from_bytes(self._data[:4].ljust(4, b"\0"), "big")

    def code(self, bit: int, chance: int) -> int:
        """Read one bit."""
        middle = self._low + ((self._high - self._low) * chance >> 16)
        bit = int(self._value <= middle)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) >> 24:
            more = self._data[self._place] if self._place < len(self._data) else 0
            self._place += 1
            self._low = (self._low & 0xFFFFFF) << 8
            self._high = (self._high & 0xFFFFFF) << 8 | 255
            self._value = (self._value & 0xFFFFFF) << 8 | more
        return bit
