# SPDX-License-Identifier: Apache-2.0
"""`.safetensors` files, tensor by tensor and byte for byte.

The library `safetensors` validates a file; its numpy side knows no float8 and copies, so tensors
are mapped from the file here: eight bytes with the length of a JSON header, the header, the data.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.archive import Archive
from rarefy.store.keys import dtype_named
from rarefy.store.replacing import replacing

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_CODES = {name: code for code, name in _NAMES.items()}
_REGULAR, _VERBATIM = b"\0", b"\1"


class _Place(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile(Mapping[str, NDArray[Any]]):
    """The tensors of a file in the order of their bytes, each mapped when it is asked for.

    Dtypes that numpy has no room for (packed four and six bits) come as flat bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and validate.

        Raises:
            FileError: missing, or not a valid file.
        """
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        try:
            with safe_open(self.path, framework="np"), self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self._header = file.read(length)
        except (OSError, SafetensorError) as error:
            raise FileError(f"{path} is no readable .safetensors file: {error}") from error
        fields = json.loads(self._header)
        self.metadata: dict[str, str] | None = fields.pop("__metadata__", None)
        places = {
            name: _Place(field["dtype"], tuple(field["shape"]), *field["data_offsets"])
            for name, field in fields.items()
        }
        self._places = dict(sorted(places.items(), key=lambda item: item[1][2:]))
        self._data = np.memmap(self.path, dtype=np.uint8, mode="r")[8 + length :]

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        data = self._data[place.start : place.stop]
        if place.dtype not in _NAMES:
            return data
        dtype = dtype_named(_NAMES[place.dtype]).newbyteorder("<")
        # A tensor may start anywhere, so the view can't demand alignment.
        return np.frombuffer(data.tobytes(), dtype=dtype).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def program(self) -> bytes:
        """What a `.rfy` file keeps beside the tensors so that `write_file` can repeat this file.

        The metadata alone where the header follows from the tensors, otherwise the header itself.
        """
        places = self._places.items()
        if all(place.dtype in _NAMES for _, place in places):
            layout = [(name, _NAMES[place.dtype], place.shape) for name, place in places]
            if _header(layout, self.metadata) == self._header:
                return _REGULAR + _compact(self.metadata)
        return _VERBATIM + self._header


def write_file(path: str | os.PathLike[str], archive: Archive) -> None:
    """Write the file that `archive` was packed from, byte for byte, one tensor at a time.

    Raises:
        FileError: the archive was not packed from such a file, or the disk is full.
    """
    way, text = archive.program[:1], archive.program[1:]
    if way == _REGULAR:
        try:
            header = _header(archive.layout(), json.loads(text))
        except (ValueError, KeyError, RecursionError) as error:
            raise FileError(f"{archive.path} holds no .safetensors header ({error})") from error
    elif way == _VERBATIM:
        header = text
    else:
        raise FileError(f"{archive.path} was not packed from a .safetensors file")
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in archive:
            array = archive[name]
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _header(layout: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Any) -> bytes:
    """The header that the library writes for these names, dtypes and shapes, in their order."""
    fields: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    start = 0
    for name, dtype, shape in layout:
        stop = start + prod(shape) * dtype_named(dtype).itemsize
        fields[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = _compact(fields)
    return text + b" " * (-len(text) % 8)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
