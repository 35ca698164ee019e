# SPDX-License-Identifier: Apache-2.0
"""ONNX files whose weights stay on the disk: graphs are read and written, tensors pass one at a time.

An ONNX file is one protobuf message, so the library holds all of it in memory, and as bytes once more when
it reads or writes. Here the fields of the message are walked where they lie (protobuf's wire format: a number
and a type as one varint, then the value), and the data of the graph's initialisers are left out of what the
library sees. Files are byte for byte those of ``SerializeToString(deterministic=True)``.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.fields import Cursor, varint

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST = 4096
"""Data of so many bytes are left in the file; shorter ones are as quickly read."""

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5
_PIECE = 1 << 24


class Field(NamedTuple):
    """A field of a message: its number, where it starts, and the range of its value."""

    number: int
    begin: int
    start: int
    stop: int
    wire: int


class Data(NamedTuple):
    """The bytes of an initialiser that is not in the message.

    Attributes:
        size: bytes.
        load: gives them, as any array in row-major order.
        offset: where they stand in their file, if they do.
    """

    size: int
    load: Callable[[], NDArray[Any]]
    offset: int = -1


class Walked(NamedTuple):
    """A model without the data of its larger initialisers.

    Attributes:
        model: the ``onnx.ModelProto``; where data are left out, ``raw_data`` is present and empty.
        data: by the place in ``model.graph.initializer``, mapped from the file.
    """

    model: "ModelProto"
    data: dict[int, Data]


def read_model(path: Path) -> Walked:
    """The graph of a file, its weights left where they are.

    Raises:
        FileError: missing, or no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        text, data = without_data(np.memmap(path, dtype=np.uint8, mode="r"))
        for place, (size, _, offset) in data.items():  # mapped anew each time, so dropped each time
            load = partial(np.memmap, path, np.uint8, "r", offset, (size,))
            data[place] = Data(size, load, offset)
        return Walked(onnx.ModelProto.FromString(text), data)
    except (OSError, ValueError, DecodeError, FileError) as error:
        raise FileError(f"{path} is no readable ONNX file: {error}") from error


def without_data(content: NDArray[np.uint8]) -> tuple[bytes, dict[int, Data]]:
    """The message without the data of its graph's initialisers, and the data.

    Raises:
        FileError: fields that do not fit into the message.
    """
    data: dict[int, Data] = {}
    view, model, graphs = content.data, bytearray(), 0
    for field in fields(view, 0, len(view)):
        if field.number != GRAPH or field.wire != _BYTES:
            model += view[field.begin : field.stop]
            continue
        graphs += 1
        graph, place = bytearray(), 0
        for inner in fields(view, field.start, field.stop):
            raw = None
            if inner.number == INITIALIZER and inner.wire == _BYTES:
                raw = raw_data(view, inner)
                place += 1
            if raw is None:
                graph += view[inner.begin : inner.stop]
                continue
            tensor = bytes(view[inner.start : raw.begin]) + tagged(RAW_DATA, 0)
            tensor += bytes(view[raw.stop : inner.stop])
            graph += tagged(INITIALIZER, len(tensor)) + tensor
            piece = content[raw.start : raw.stop]
            data[place - 1] = Data(piece.size, partial(np.asarray, piece), raw.start)
        model += tagged(GRAPH, len(graph)) + graph
    if graphs > 1:  # protobuf would merge them, and the places would be others
        return bytes(view), {}
    return bytes(model), data


def raw_data(view: memoryview, tensor: Field) -> Field | None:
    """The field with the data of a tensor if it is worth leaving out."""
    found = [f for f in fields(view, tensor.start, tensor.stop) if f.number == RAW_DATA]
    if len(found) != 1 or found[0].wire != _BYTES or found[0].stop - found[0].start < LEAST:
        return None
    return found[0]


def fields(view: memoryview, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message that lies there, in order.

    Raises:
        FileError: a field that is cut short or of an unknown kind.
    """
    cursor = Cursor(view[start:stop])
    while cursor.remaining:
        begin = cursor.position
        key = cursor.varint()
        wire = key & 7
        if wire == _VARINT:
            size = 0
            first = cursor.position
            while cursor.byte() & 0x80:
                pass
        elif wire in (_LONG, _BYTES, _SHORT):
            size = {_LONG: 8, _SHORT: 4}.get(wire, 0) or cursor.varint()
            first = cursor.position
            cursor.take(size)
        else:
            raise FileError(f"a field of kind {wire} at byte {start + begin} is no protobuf")
        yield Field(key >> 3, start + begin, start + first, start + cursor.position, wire)


def tagged(number: int, size: int) -> bytes:
    """What stands in front of a value of so many bytes."""
    return varint(number << 3 | _BYTES) + varint(size)


def write_model(file: BinaryIO, model: "ModelProto", data: Mapping[int, Data]) -> None:
    """Writes a model whose larger initialisers have their data elsewhere, one after the other.

    Args:
        file: to write to.
        model: loses its initialisers.
        data: by the place in ``model.graph.initializer``; these have names, types and dimensions alone.
    """
    heads = [
        initializer_head(tensor, data.get(i)) for i, tensor in enumerate(model.graph.initializer)
    ]
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    outer = model.SerializeToString(deterministic=True)
    cut, edge = first_after(graph, INITIALIZER), first_after(outer, GRAPH)
    size = len(graph) + sum(len(head) for head in heads) + sum(d.size for d in data.values())
    file.write(outer[:edge] + tagged(GRAPH, size) + graph[:cut])
    for place, head in enumerate(heads):
        file.write(head)
        if place in data:
            octets = np.ascontiguousarray(data[place].load()).reshape(-1).view(np.uint8)
            for start in range(0, octets.size, _PIECE):
                file.write(octets[start : start + _PIECE].data)
    file.write(graph[cut:] + outer[edge:])


def initializer_head(tensor: Any, data: Data | None) -> bytes:
    """The field of an initialiser up to its data, if they are elsewhere, else all of it."""
    text = tensor.SerializeToString(deterministic=True)
    if data is None:
        return tagged(INITIALIZER, len(text)) + text
    head = text + tagged(RAW_DATA, data.size)
    return tagged(INITIALIZER, len(head) + data.size) + head


def first_after(message: bytes, number: int) -> int:
    """Where the first field with a higher number begins."""
    found = fields(memoryview(message), 0, len(message))
    return next((field.begin for field in found if field.number > number), len(message))
