# SPDX-License-Identifier: Apache-2.0
"""An open `.rfy` file: checks before it believes, decodes a tensor when it is asked for.

A large file ends in a trailer: length of the header, CRC-32 of the header, and 16 bytes of the SHA-256
of everything before them. From there the header is found, and from the header the payloads. A small
file (see `compact`) is read at once.
"""

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.compact import FRONT, SMALL, read_small
from rarefy.store.decoding import coding_name, decode_tensor
from rarefy.store.header import Entry, Header, read_header, read_notes
from rarefy.store.keys import count_distinct, count_nonzero

MAGIC, VERSION = b"RFY1", 1
TRAILER = struct.Struct("<II")
DIGEST = 16
"""Bytes of the SHA-256 that a file keeps."""

_FRONT = len(MAGIC) + 1
_BACK = TRAILER.size + DIGEST
_CHUNK = 1 << 20


class Archive(Mapping[str, NDArray[Any]]):
    """An open `.rfy` file: a mapping from names to tensors, and a context manager."""

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Open and check; see `rfy.read`."""
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise FileError(f"{path} can't be opened: {error.strerror or error}") from error
        try:
            header = self._open(verify)
        except BaseException:
            self.close()
            raise
        self._entries = {entry.name: entry for entry in header.entries}
        self._notes, self.program, self.kind = header.notes, header.program, header.kind

    def _open(self, verify: bool) -> Header:
        size = self._file.seek(0, os.SEEK_END)
        front = self._take(0, min(_FRONT, size))
        if front.startswith(FRONT):
            return self._open_small(size)
        if not front.startswith(MAGIC):
            raise FileError(f"{self.path} is no .rfy file: it does not begin with {MAGIC!r}")
        if size < _FRONT + _BACK:
            raise FileError(f"{self.path} is cut short: it has only {size} bytes; fetch it again")
        if front[-1] != VERSION:
            raise FileError(
                f"{self.path} has format {front[-1]} and this version of rarefy reads {VERSION}; "
                "update rarefy"
            )
        trailer = self._take(size - _BACK, _BACK)
        length, checksum = TRAILER.unpack_from(trailer)
        end = size - _BACK - length
        if end < _FRONT or zlib.crc32(block := self._take(end, length)) != checksum:
            raise FileError(f"{self.path} is damaged or cut short; fetch it again")
        if verify and self._digest(size - DIGEST) != trailer[TRAILER.size :]:
            raise FileError(f"{self.path} has been changed since it was written; fetch it again")
        try:
            return read_header(block, _FRONT, end)
        except FileError as error:
            raise FileError(f"{self.path} has an impossible header: {error}") from error

    def _open_small(self, size: int) -> Header:
        if size > SMALL:
            raise FileError(f"{self.path} is damaged: {size} bytes are too many for its form")
        try:
            return read_small(self._take(0, size))
        except FileError as error:
            raise FileError(f"{self.path} can't be read: {error}") from error

    def _digest(self, size: int) -> bytes:
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK):
            digest.update(self._take(start, min(_CHUNK, size - start)))
        return digest.digest()[:DIGEST]

    def _take(self, start: int, count: int) -> bytes:
        try:
            with self._lock:
                self._file.seek(start)
                data = self._file.read(count)
        except (OSError, ValueError) as error:
            raise FileError(f"{self.path} can't be read: {error}") from error
        if len(data) != count:
            raise FileError(f"{self.path} became shorter while it was read")
        return data

    @property
    def info(self) -> dict[str, Any]:
        """The notes that were written with the tensors."""
        return read_notes(self._notes)

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self._entries[name]
        memory = _memory()
        if entry.decoded > memory:
            raise FileError(
                f"{self.path} states {entry.decoded} bytes for tensor '{name}', "
                f"more than this machine's memory of {memory}"
            )
        try:
            return decode_tensor(self._payload(entry), entry.dtype, entry.shape)
        except FileError as error:
            raise FileError(f"{self.path} holds a damaged tensor '{name}': {error}") from error

    def _payload(self, entry: Entry) -> bytes:
        if entry.inline is not None:
            return entry.inline
        payload = self._take(entry.offset, entry.size)
        if zlib.crc32(payload) != entry.checksum:
            raise FileError("its checksum does not agree; fetch the file again")
        return payload

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor; decodes nothing."""
        return [(name, item.dtype.name, item.shape) for name, item in self._entries.items()]

    def sizes(self) -> dict[str, int]:
        """Coded bytes of every tensor; decodes nothing."""
        return {name: entry.size for name, entry in self._entries.items()}

    def decoded_sizes(self) -> dict[str, int]:
        """Bytes of every tensor in memory; decodes nothing."""
        return {name: entry.decoded for name, entry in self._entries.items()}

    def describe(self) -> list[dict[str, Any]]:
        """One row a tensor: name, dtype, shape, coding, bytes (coded), values, nonzero, distinct.

        Decodes every tensor, one at a time.
        """
        rows = []
        for name, entry in self._entries.items():
            array = self[name]
            rows.append(
                {
                    "name": name,
                    "dtype": entry.dtype.name,
                    "shape": list(entry.shape),
                    "coding": coding_name(self._payload(entry), entry.dtype, entry.shape),
                    "bytes": entry.size,
                    "values": array.size,
                    "nonzero": count_nonzero(array),
                    "distinct": count_distinct(array),
                }
            )
        return rows

    def close(self) -> None:
        """Close the file; tensors already decoded stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _memory() -> int:
    """Bytes of physical memory, or no bound where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
