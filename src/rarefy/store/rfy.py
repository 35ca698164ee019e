# SPDX-License-Identifier: Apache-2.0
"""The `.rfy` file: named tensors, each in its smallest coding, with a program and notes.

    b"RFY1" | version | payloads of the tensors | header | length of the header (4 bytes) |
    CRC-32 of the header (4 bytes) | first 16 bytes of the SHA-256 of all before

The header stands last, so a file is written in one pass that holds one tensor's coded form at a
time. A reader starts from the end, checks what it reads before it believes it, and decodes a tensor
when it is asked for. A file of up to 64 KiB has a shorter form, see `rarefy.store.compact`.
"""

import hashlib
import os
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError, nearest
from rarefy.store.archive import DIGEST, MAGIC, TRAILER, VERSION, Archive
from rarefy.store.coding import encode_pieces
from rarefy.store.compact import SMALL, write_small
from rarefy.store.header import INLINE, KINDS, Entry, Header, write_header, write_notes
from rarefy.store.keys import DTYPES
from rarefy.store.replacing import replacing
from rarefy.store.symbols import CODERS

__all__ = ["Archive", "read", "write"]


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    *,
    program: bytes = b"",
    kind: str = "tensors",
    info: Mapping[str, Any] | None = None,
    coder: str = "auto",
) -> int:
    """Write a `.rfy` file; it appears under its name only when it is complete.

    Args:
        path: the file to write.
        tensors: read one at a time, in their order; every dtype of ONNX and safetensors.
        program: bytes that go with them, such as an ONNX graph without its weights.
        kind: "tensors", "onnx" or "safetensors": how the program is to be read.
        info: notes that JSON can hold: recipe, measurements, hashes.
        coder: "auto" (small and fast), "huffman", "ans", "raw" (no compression), or "mixing" (the
            smallest; tensors of few levels and up to 524,288 values take some tens of microseconds a
            value, to write as to read).

    Returns:
        Bytes written.

    Raises:
        FileError: a dtype that no file can hold, notes that are no JSON, a full disk.

    Examples:
        >>> write("weights.rfy", {"w": np.zeros((1000, 1000), np.float32)})
        46
    """
    for given, known in ((kind, KINDS), (coder, CODERS)):
        if given not in known:
            raise FileError(f"no .rfy file is written with '{given}'{nearest(given, known)}")
    header = Header(kind, [], write_notes(info), program)
    with replacing(path) as partial, partial.open("wb") as file:
        return _write(file, tensors, header, coder)


class _Output:
    """Counts and digests what is written, and holds it back as long as the file may stay small."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.place, self.held = 0, b""

    def put(self, data: bytes) -> None:
        """Append bytes."""
        self._digest.update(data)
        self.place += len(data)
        if self.place <= SMALL:
            self.held += data
        else:
            self._file.write(self.held + data if self.held else data)
            self.held = b""

    def digest(self) -> bytes:
        """Of all bytes so far."""
        return self._digest.digest()[:DIGEST]


def _write(file: BinaryIO, tensors: Mapping[str, Any], header: Header, coder: str) -> int:
    out = _Output(file)
    out.put(MAGIC + bytes([VERSION]))
    for name in tensors:
        array = np.asarray(tensors[name])
        if array.dtype.name not in DTYPES:
            raise FileError(
                f"tensor '{name}' has dtype {array.dtype}, which no .rfy file holds; "
                f"convert it to one of {', '.join(DTYPES)}"
            )
        start, checksum, short = out.place, 0, b""
        for piece in encode_pieces(array, coder):
            if out.place == start and len(short) + len(piece) <= INLINE:
                short += piece
                continue
            for data in (short, piece):
                out.put(data)
                checksum = zlib.crc32(data, checksum)
            short = b""
        size, inline = (out.place - start, None) if out.place > start else (len(short), short)
        header.entries.append(Entry(name, array.dtype, array.shape, start, size, checksum, inline))
        del array
    if out.held:
        small = write_small(header, _payloads(out.held, header))
        if len(small) <= SMALL:
            return file.write(small)
    block = write_header(header)
    for data in (block, TRAILER.pack(len(block), zlib.crc32(block))):
        out.put(data)
    out.put(out.digest())
    file.write(out.held)
    return out.place


def _payloads(held: bytes, header: Header) -> bytes:
    """All payloads in the order of their tensors, those that a large file has in its header too."""
    return b"".join(
        held[entry.offset : entry.offset + entry.size] if entry.inline is None else entry.inline
        for entry in header.entries
    )


def read(path: str | os.PathLike[str], *, verify: bool = True) -> "Archive":
    """Open a `.rfy` file; tensors are decoded one by one when asked for.

    Args:
        path: a file written by `write`.
        verify: read the whole file once and check its SHA-256. Without it only the header and the
            tensors that are asked for are read and checked.

    Raises:
        FileError: no such file, not a `.rfy` file, a later version, damaged or cut short.

    Examples:
        >>> with read("weights.rfy") as archive:
        ...     w = archive["w"]
    """
    return Archive(path, verify=verify)
