# SPDX-License-Identifier: Apache-2.0
"""The header of a `.rfy` file: which tensors there are, what the program and the notes say.

Column by column, so that a general compressor sees like beside like; the program stands in the same
text as the names of its tensors and so repeats them almost for free:

    kind | number of tensors | dtype of each | number of dimensions of each | all dimensions |
    bytes of each payload, doubled, plus 1 if the payload stands below | lengths of the names |
    length of the notes | CRC-32 of each payload that stands in the file | payloads below 64 bytes |
    the notes as JSON | names | program

Integers are varints unless a byte each (dtypes, dimensions) or four (CRC-32) are named.
"""

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from rarefy.errors import FileError
from rarefy.store.dictionary import DICTIONARY
from rarefy.store.fields import Cursor, varint
from rarefy.store.keys import DTYPES, dtype_named
from rarefy.store.text import compress, decompress

KINDS = ("tensors", "onnx", "safetensors")

INLINE = 64
"""Payloads up to this many bytes stand in the header."""

MOST_DIMENSIONS = 64

DENSEST = 256
"""A compressed text is at most so many times longer than its bytes."""


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # of the payload in the file
    size: int  # of the payload, in bytes
    checksum: int  # CRC-32 of the payload, 0 if it stands in the header
    inline: bytes | None  # the payload if it stands in the header

    @property
    def decoded(self) -> int:
        """Bytes of the tensor in memory."""
        return prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """All that a file says beside the payloads."""

    kind: str
    entries: list[Entry]
    notes: bytes  # JSON
    program: bytes


def write_header(header: Header) -> bytes:
    """The header compressed, its plain size in front."""
    entries = header.entries
    names = [entry.name.encode("utf-8", "surrogatepass") for entry in entries]
    stored = [entry for entry in entries if entry.inline is None]
    parts = [
        bytes([KINDS.index(header.kind)]),
        varint(len(entries)),
        bytes(DTYPES.index(entry.dtype.name) for entry in entries),
        bytes(len(entry.shape) for entry in entries),
        b"".join(varint(length) for entry in entries for length in entry.shape),
        b"".join(varint(2 * entry.size + (entry.inline is not None)) for entry in entries),
        b"".join(varint(len(name)) for name in names),
        varint(len(header.notes)),
        b"".join(entry.checksum.to_bytes(4, "little") for entry in stored),
        b"".join(entry.inline or b"" for entry in entries),
        header.notes,
        b"".join(names),
        header.program,
    ]
    plain = b"".join(parts)
    return varint(len(plain)) + compress(plain, DICTIONARY)


def read_header(data: bytes, start: int, end: int) -> Header:
    """Undo `write_header`, checking everything that it states.

    Args:
        data: the compressed header.
        start: where the first payload begins in the file.
        end: where the last one must end.

    Raises:
        FileError: any field is out of range, or the payloads do not fill the file.
    """
    packed = Cursor(data)
    size = packed.varint(DENSEST * len(data) + (1 << 16))
    plain = Cursor(decompress(packed.take(packed.remaining), size, DICTIONARY))
    kind = plain.byte()
    if kind >= len(KINDS):
        raise FileError(f"kind {kind} is unknown to this version")
    count = plain.varint(min(plain.remaining, end + len(data)))
    dtypes = [dtype_numbered(code) for code in plain.take(count)]
    ranks = list(plain.take(count))
    if max(ranks, default=0) > MOST_DIMENSIONS:
        raise FileError(f"a tensor of {max(ranks)} dimensions is announced")
    shapes = [tuple(plain.varint() for _ in range(rank)) for rank in ranks]
    sizes = [plain.varint() for _ in range(count)]
    lengths = [plain.varint(plain.remaining) for _ in range(count)]
    notes = plain.varint(plain.remaining)
    checksums = [0 if size & 1 else int.from_bytes(plain.take(4), "little") for size in sizes]
    inline = [bytes(plain.take(size >> 1)) if size & 1 else None for size in sizes]
    text = bytes(plain.take(notes))
    names = [text_of(plain.take(length)) for length in lengths]
    if len(set(names)) != count:
        raise FileError("two tensors have the same name")
    entries = []
    for row in zip(names, dtypes, shapes, sizes, checksums, inline, strict=True):
        name, dtype, shape, size, checksum, short = row
        if prod(shape) * dtype.itemsize >> 60:
            raise FileError(f"tensor '{name}' of shape {shape} is larger than any memory")
        entries.append(Entry(name, dtype, shape, start, size >> 1, checksum, short))
        start += 0 if size & 1 else size >> 1
    if start != end:
        raise FileError(f"payloads end at byte {start} instead of {end}")
    return Header(KINDS[kind], entries, text, bytes(plain.take(plain.remaining)))


def write_notes(info: Mapping[str, Any] | None) -> bytes:
    """Notes as compact JSON; none at all take no bytes.

    Raises:
        FileError: something in them is no JSON.
    """
    if not info:
        return b""
    try:
        text = json.dumps(dict(info), separators=(",", ":"), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"info can't be stored as JSON: {error}; use plain values") from error
    return text.encode("utf-8", "surrogatepass")


def read_notes(notes: bytes) -> dict[str, Any]:
    """Undo `write_notes`.

    Raises:
        FileError: no JSON object.
    """
    try:
        info = json.loads(notes.decode("utf-8", "surrogatepass")) if notes else {}
    except (ValueError, RecursionError) as error:
        raise FileError(f"the notes of the file are no JSON ({error})") from error
    if not isinstance(info, dict):
        raise FileError("the notes of the file are no JSON object")
    return info


def dtype_numbered(code: int) -> np.dtype[Any]:
    """The dtype of a number in a file.

    Raises:
        FileError: there is none.
    """
    if code >= len(DTYPES):
        raise FileError(f"dtype {code} is unknown to this version")
    return dtype_named(DTYPES[code])


def text_of(data: memoryview) -> str:
    """A name from its bytes.

    Raises:
        FileError: no UTF-8.
    """
    try:
        return bytes(data).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FileError("a tensor's name is no UTF-8") from error
