# SPDX-License-Identifier: Apache-2.0
"""The `.rfy` file: named tensors, each in its smallest coding, with a program and notes.

    b"RFY1" | version | payloads of the tensors | header | length of the header (4 bytes) |
    CRC-32 of the header (4 bytes) | first 16 bytes of the SHA-256 of all before

The header stands last, so a file is written in one pass that holds one tensor's coded form at a
time. A reader starts from the end, checks what it reads before it believes it, and decodes a tensor
when it is asked for.
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
        coder: "auto" (the smallest), "huffman", "ans", or "raw" (no compression).

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


def _write(file: BinaryIO, tensors: Mapping[str, Any], header: Header, coder: str) -> int:
    digest, place = hashlib.sha256(), 0

    def put(data: bytes) -> None:
        nonlocal place
        file.write(data)
        digest.update(data)
        place += len(data)

    put(MAGIC + bytes([VERSION]))
    for name in tensors:
        array = np.asarray(tensors[name])
        if array.dtype.name not in DTYPES:
            raise FileError(
                f"tensor '{name}' has dtype {array.dtype}, which no .rfy file holds; "
                f"convert it to one of {', '.join(DTYPES)}"
            )
        start, checksum, short = place, 0, b""
        for piece in encode_pieces(array, coder):
            if place == start and len(short) + len(piece) <= INLINE:
                short += piece
                continue
            for data in (short, piece):
                put(data)
                checksum = zlib.crc32(data, checksum)
            short = b""
        size, inline = (place - start, None) if place > start else (len(short), short)
        header.entries.append(Entry(name, array.dtype, array.shape, start, size, checksum, inline))
        del array
    block = write_header(header)
    put(block)
    put(TRAILER.pack(len(block), zlib.crc32(block)))
    put(digest.digest()[:DIGEST])
    return place


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
