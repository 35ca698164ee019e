# SPDX-License-Identifier: Apache-2.0
"""General compression for text, graphs and repeating bytes: the standard library at its strongest.

Headerless deflate (RFC 1951), with a dictionary where one is given, and headerless LZMA with
several context settings are all tried; a small network's file is mostly this. The method takes one
byte. LZMA's constant first byte and its end marker are cut off: the size is known from elsewhere.
"""

import lzma
import zlib
from typing import Any

from rarefy.errors import FileError

STORED, _DEFLATE, _LZMA = 0, 1, 2
"""Methods, as numbered in a file."""

_CONTEXTS = [(3, 0, 0), (0, 0, 0), (2, 0, 0), (4, 0, 0), (3, 0, 2), (0, 2, 2), (1, 1, 1)]
"""(lc, lp, pb): bits of the previous byte, of the literal's and of the match's position."""

_TRY_ALL = 1 << 20
_STEP = 1 << 16


def compress(data: bytes, dictionary: bytes = b"") -> bytes:
    """The smallest form of `data`, its method in the first byte.

    Args:
        data: anything.
        dictionary: bytes that `data` is likely to repeat; `decompress` needs the same ones.
    """
    candidates = [bytes([STORED]) + data]
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED)
    for strategy in strategies if len(data) <= _TRY_ALL else strategies[:1]:
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy, dictionary)
        candidates.append(bytes([_DEFLATE]) + coder.compress(data) + coder.flush())
    for index in range(len(_CONTEXTS) if len(data) <= _TRY_ALL else 1):
        candidates.append(bytes([_LZMA + index]) + _lzma(data, index))
    return min(candidates, key=len)


def decompress(data: Any, size: int, dictionary: bytes = b"") -> bytes | bytearray:
    """Undo `compress`.

    Args:
        data: bytes-like.
        size: length of the original.

    Raises:
        FileError: damaged, or not `size` bytes long.
    """
    return TextReader(data, size, dictionary).read(size)


class TextReader:
    """Decompresses in pieces, and never more than it was asked for."""

    def __init__(self, data: Any, size: int, dictionary: bytes = b"") -> None:
        """Begin with the method byte at the front of `data`, the original being `size` long."""
        if not len(data):
            raise FileError("a compressed part has no bytes")
        method, body = data[0], bytes(data[1:])
        self._stored, self._place = body, 0
        self._decoder: _Inflate | _Unlzma | None = None
        if method == _DEFLATE:
            self._decoder = _Inflate(body, dictionary)
        elif _LZMA <= method < _LZMA + len(_CONTEXTS):
            self._decoder = _Unlzma(body, size, method - _LZMA)
        elif method != STORED:
            raise FileError(f"compression method {method} is unknown to this version")

    def read(self, count: int) -> bytes | bytearray:
        """The next `count` bytes of the original.

        Raises:
            FileError: the data are damaged or end before.
        """
        piece: bytes | bytearray
        if self._decoder is None:
            piece = self._stored[self._place : self._place + count]
            self._place += count
        else:
            piece = bytearray()
            while len(piece) < count:
                step = self._decoder.read(min(count - len(piece), _STEP))
                if not step:
                    break
                piece += step
        if len(piece) != count:
            raise FileError(f"a compressed part ends after {len(piece)} of {count} bytes")
        return piece


class _Inflate:
    def __init__(self, body: bytes, dictionary: bytes) -> None:
        self._decoder, self._input = zlib.decompressobj(-15, zdict=dictionary), body

    def read(self, limit: int) -> bytes:
        try:
            out = self._decoder.decompress(self._input, limit)
        except zlib.error as error:
            raise FileError(f"a deflated part is damaged ({error})") from error
        self._input = self._decoder.unconsumed_tail
        return out


class _Unlzma:
    def __init__(self, body: bytes, size: int, index: int) -> None:
        filters = [_filter(size, index)]
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        self._input = b"\0" + body

    def read(self, limit: int) -> bytes:
        try:
            out = self._decoder.decompress(self._input, limit)
        except (lzma.LZMAError, EOFError) as error:
            raise FileError(f"an LZMA part is damaged ({error})") from error
        self._input = b""
        return out


def _filter(size: int, index: int) -> dict[str, Any]:
    lc, lp, pb = _CONTEXTS[index]
    window = max(4096, min(size, 1 << 26))
    return {"id": lzma.FILTER_LZMA1, "dict_size": window, "lc": lc, "lp": lp, "pb": pb}


def _lzma(data: bytes, index: int) -> bytes:
    search = {"mode": lzma.MODE_NORMAL, "nice_len": 273, "mf": lzma.MF_BT4, "depth": 512}
    filters = [{**_filter(len(data), index), **search}]
    body = lzma.compress(data, lzma.FORMAT_RAW, filters=filters)[1:]
    # The marker is at most seven bytes; one byte more than decoders need is kept for safety.
    shortest = len(body)
    for cut in range(1, 9):
        if not _decodes(body[: len(body) - cut], data, index):
            break
        shortest = len(body) - cut
    return body[: shortest + 1]


def _decodes(body: bytes, data: bytes, index: int) -> bool:
    try:
        return _Unlzma(body, len(data), index).read(len(data)) == data
    except FileError:
        return False
