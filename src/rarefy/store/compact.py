# SPDX-License-Identifier: Apache-2.0
"""Small `.rfy` files: a header of a few bits a tensor, one check for the whole file.

    b"RFY2" | payloads of the tensors | header | length of the header, a varint backwards |
    CRC-32 of all before (4 bytes)

A file of up to 64 KiB is read whole before anything in it is believed, so one CRC-32 guards it: damage
passes by chance once in four billion times, and never if it lies within 32 bits. (Neither it nor a hash
proves who wrote a file.) The header is a string of bits, then the text:

    kind | number of tensors | 1 if their names are "0", "1", "2", … | dtype, rank and dimensions of
    each, told by those before it | bytes of each payload but the last | lengths of names, notes and
    program | filled up to a byte | names, notes and program, compressed together
"""

import zlib
from math import prod
from typing import NamedTuple

from rarefy.errors import FileError
from rarefy.store.dictionary import DICTIONARY
from rarefy.store.fields import BitReader, BitWriter, Cursor, varint
from rarefy.store.header import (
    DENSEST,
    KINDS,
    MOST_DIMENSIONS,
    Entry,
    Header,
    dtype_numbered,
    text_of,
)
from rarefy.store.keys import DTYPES
from rarefy.store.text import compress, decompress

SMALL = 1 << 16
"""Files up to this many bytes are written in this form."""

FRONT = b"RFY2"
_CHECK = 4
_LIKELY = (5, 3, 1)
"""Dimensions that are cheap from the beginning, the cheapest last."""

_RECENT = 64
"""So many different dimensions are remembered."""


class _Text(NamedTuple):
    """How long the parts of a header's text are, in bytes."""

    names: list[int]
    notes: int
    program: int

    @property
    def total(self) -> int:
        return sum(self.names) + self.notes + self.program


def write_small(header: Header, payloads: bytes) -> bytes:
    """A whole file.

    Args:
        header: its entries are in the order of their payloads.
        payloads: of all tensors, one after the other.
    """
    block = _write_header(header)
    length = varint(len(block))[::-1]
    data = b"".join([FRONT, payloads, block, length])
    return data + zlib.crc32(data).to_bytes(_CHECK, "little")


def read_small(data: bytes) -> Header:
    """Undo `write_small`; the entries hold their payloads.

    Raises:
        FileError: damaged, cut short, or the header states what can't be.
    """
    end = len(data) - _CHECK
    if end <= len(FRONT) or zlib.crc32(data[:end]) != int.from_bytes(data[end:], "little"):
        raise FileError("damaged or cut short; fetch it again")
    back = Cursor(data[end - 1 : max(end - 11, 0) : -1])
    length = back.varint(end)
    start = end - back.position - length
    if start < len(FRONT):
        raise FileError(f"its header of {length} bytes is longer than the file")
    return _read_header(data[start : start + length], data[len(FRONT) : start])


def _write_header(header: Header) -> bytes:
    entries, writer = header.entries, BitWriter()
    numbered = all(entry.name == str(place) for place, entry in enumerate(entries))
    names = [] if numbered else [e.name.encode("utf-8", "surrogatepass") for e in entries]
    writer.write(KINDS.index(header.kind), 2)
    writer.golomb(len(entries), 2)
    writer.write(int(numbered), 1)
    _write_shapes(writer, entries)
    _write_lengths(writer, [entry.size for entry in entries[:-1]])
    _write_lengths(writer, [len(name) for name in names])
    writer.golomb(len(header.notes))
    writer.golomb(len(header.program))
    text = b"".join([*names, header.notes, header.program])
    return writer.to_bytes() + (compress(text, DICTIONARY) if text else b"")


def _read_header(block: bytes, payloads: bytes) -> Header:
    cursor = Cursor(block)
    reader = BitReader(cursor)
    kind = reader.read(2)
    if kind >= len(KINDS):
        raise FileError(f"kind {kind} is unknown to this version")
    count = _at_most(8 * len(block), reader.golomb(2))
    numbered = bool(reader.read(1))
    shapes = _read_shapes(reader, count)
    sizes = _read_lengths(reader, max(count - 1, 0))
    lengths = [] if numbered else _read_lengths(reader, count)
    text = _Text(lengths, reader.golomb(), reader.golomb())
    reader.close()
    left = len(payloads) - sum(sizes)
    if left < 0 or (left and not count):
        raise FileError(f"payloads of {sum(sizes)} bytes are announced in {len(payloads)}")
    entries, begin, names = [], 0, _read_text(cursor, text)
    for place, ((dtype, shape), size) in enumerate(zip(shapes, [*sizes, left], strict=False)):
        name = str(place) if numbered else text_of(names.take(lengths[place]))
        part = payloads[begin : begin + size]
        entries.append(Entry(name, dtype_numbered(dtype), shape, begin, size, 0, part))
        begin += size
        if prod(shape) * entries[-1].dtype.itemsize >> 60:
            raise FileError(f"tensor '{name}' of shape {shape} is larger than any memory")
    if len({entry.name for entry in entries}) != count:
        raise FileError("two tensors have the same name")
    notes = bytes(names.take(text.notes))
    return Header(KINDS[kind], entries, notes, bytes(names.take(text.program)))


def _read_text(cursor: Cursor, text: _Text) -> Cursor:
    """Names, notes and program; refused if it says to be longer than it can be."""
    packed = cursor.take(cursor.remaining)
    _at_most(DENSEST * len(packed) + SMALL if len(packed) else 0, text.total)
    return Cursor(decompress(packed, text.total, DICTIONARY) if text.total else b"")


def _write_shapes(writer: BitWriter, entries: list[Entry]) -> None:
    recent, dtype, ranks = list(_LIKELY), DTYPES.index("float32"), [1, 2]
    for entry in entries:
        number = DTYPES.index(entry.dtype.name)
        writer.write(int(number != dtype), 1)
        if number != dtype:
            writer.write(number, 5)
            dtype = number
        rank = len(entry.shape)  # weights and biases take turns
        writer.write(int(rank != ranks[0]), 1)
        if rank != ranks[0]:
            writer.golomb(rank, 1)
        ranks = [ranks[1], rank]
        for length in entry.shape:
            known = length in recent
            place = recent[::-1].index(length) + 1 if known else 0
            writer.golomb(place)
            if known:
                recent.remove(length)
            else:
                writer.golomb(length, 4)
            recent = [*recent[1 - _RECENT :], length]


def _read_shapes(reader: BitReader, count: int) -> list[tuple[int, tuple[int, ...]]]:
    recent, dtype, ranks, found = list(_LIKELY), DTYPES.index("float32"), [1, 2], []
    for _ in range(count):
        if reader.read(1):
            dtype = reader.read(5)
        rank = reader.golomb(1) if reader.read(1) else ranks[0]
        if rank > MOST_DIMENSIONS:
            raise FileError(f"a tensor of {rank} dimensions is announced")
        ranks = [ranks[1], rank]
        shape = []
        for _ in range(rank):
            place = _at_most(len(recent), reader.golomb())
            length = recent.pop(-place) if place else reader.golomb(4)
            recent = [*recent[1 - _RECENT :], length]
            shape.append(length)
        found.append((dtype, tuple(shape)))
    return found


def _write_lengths(writer: BitWriter, lengths: list[int]) -> None:
    """Sizes of the same kind, in the order of exponential-Golomb code that suits them best."""
    if lengths:
        order = min(
            range(16),
            key=lambda k: sum(2 * (n + (1 << k)).bit_length() - k for n in lengths),
        )
        writer.write(order, 4)
        writer.golombs(lengths, order)


def _read_lengths(reader: BitReader, count: int) -> list[int]:
    if not count:
        return []
    order = reader.read(4)
    return [reader.golomb(order) for _ in range(count)]


def _at_most(limit: int, value: int) -> int:
    if value > limit:
        raise FileError(f"a field states {value} where at most {limit} is possible")
    return value
