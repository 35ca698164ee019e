# SPDX-License-Identifier: Apache-2.0
"""Names of content: SHA-256 of bytes, of files, of sets of tensors."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError

_CHUNK = 1 << 20


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits.

    Examples:
        >>> hash_bytes(b"")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, read in pieces of one megabyte.

    Raises:
        FileError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror or error}") from error
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and values, whatever the order of the mapping.

    Two sets have the same hash if and only if they are the same names with bit-identical tensors;
    memory layout and byte order of the machine do not matter.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        title = f"{len(name)} {name} {array.dtype.name} {array.shape}"
        digest.update(title.encode("utf-8", "surrogatepass"))
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
