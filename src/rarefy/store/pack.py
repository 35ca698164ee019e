# SPDX-License-Identifier: Apache-2.0
"""ONNX and safetensors files as `.rfy` files and back, nothing lost.

An ONNX model becomes its tensors and a program: the same `ModelProto` without their data. A
safetensors file becomes its tensors and its metadata.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.archive import Archive
from rarefy.store.onnx_file import Data, read_model
from rarefy.store.onnx_tensors import (
    put_tensors,
    take_tensors,
    tensor_protos,
    uses_other_file,
)
from rarefy.store.replacing import replacing
from rarefy.store.rfy import read, write
from rarefy.store.safetensors_file import SafetensorsFile, write_file

_PROTOBUF_LIMIT = (1 << 31) - 1


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    info: Mapping[str, Any] | None = None,
    coder: str = "auto",
) -> int:
    """Write a `.onnx` (weights in other files are followed) or `.safetensors` file as `.rfy`.

    Args:
        source: the file to pack; its suffix says what it is.
        out: the `.rfy` file to write.
        info: notes to keep with it.
        coder: as in `rfy.write`.

    Returns:
        Bytes written.

    Raises:
        FileError: another suffix, a file that can't be read, a tensor without data.
    """
    path = Path(source)
    if path.suffix == ".onnx":
        model, data = _load(path)
        tensors = take_tensors(model, data)
        program = model.SerializeToString(deterministic=True)
        del model
        return write(out, tensors, program=program, kind="onnx", info=info, coder=coder)
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        program = file.program()
        return write(out, file, program=program, kind="safetensors", info=info, coder=coder)
    raise FileError(f"{path} can't be packed: its name ends in neither .onnx nor .safetensors")


def unpack(rfy: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the ONNX or safetensors file that was packed.

    The ONNX file is `onnx.load(source).SerializeToString(deterministic=True)`; beyond protobuf's
    limit of two gigabytes the weights go to `<out>.data`. The safetensors file is the source, byte
    for byte.

    Raises:
        FileError: damaged, or a `.rfy` file of another kind, or a full disk.
    """
    with read(rfy) as archive:
        if archive.kind == "safetensors":
            write_file(out, archive)
            return
        model = _model(archive)
    if model.ByteSize() <= _PROTOBUF_LIMIT:
        with replacing(out) as partial:
            partial.write_bytes(model.SerializeToString(deterministic=True))
    else:
        _save_in_two(model, Path(out))


def load_onnx(rfy: str | os.PathLike[str]) -> Any:
    """The `onnx.ModelProto` of a `.rfy` file that holds one.

    Raises:
        FileError: damaged, or of another kind.
    """
    with read(rfy) as archive:
        return _model(archive)


def load_tensors(rfy: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """All tensors of a `.rfy` file of any kind.

    Raises:
        FileError: damaged.
    """
    with read(rfy) as archive:
        return dict(archive)


def strip_onnx(model: Any, *, node_names: bool = False) -> None:
    """Drop from an exported model what no runtime needs; the model changes in place.

    Documentation strings, the exporter's notes on nodes, values and tensors, and the shapes of
    values between nodes. Names of inputs, outputs, values and tensors stay, and so does the model's
    own metadata.

    Args:
        model: an `onnx.ModelProto`.
        node_names: drop the names of nodes as well; profilers and quantisers may refer to them.
    """
    model.ClearField("doc_string")
    _strip_graph(model.graph, node_names)
    for function in model.functions:
        for field in ("doc_string", "value_info", "metadata_props"):
            function.ClearField(field)
        _strip_nodes(function.node, node_names)


def _strip_graph(graph: Any, node_names: bool) -> None:
    for field in ("doc_string", "value_info", "metadata_props"):
        graph.ClearField(field)
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    _strip_nodes(graph.node, node_names)


def _strip_nodes(nodes: Any, node_names: bool) -> None:
    for node in nodes:
        for field in ("doc_string", "metadata_props", *(["name"] if node_names else [])):
            node.ClearField(field)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            graphs = [attribute.g] if attribute.HasField("g") else []
            for graph in (*graphs, *attribute.graphs):
                _strip_graph(graph, node_names)


def _load(path: Path) -> tuple[Any, Mapping[int, Data]]:
    """The model and the data that were left in its file; those in other files are loaded."""
    import onnx

    data: Mapping[int, Data]
    try:
        model, data = read_model(path)
        if any(uses_other_file(proto) for _, proto, _ in tensor_protos(model)):
            model, data = onnx.load(path), {}
    except (OSError, ValueError, _decode_error(), onnx.checker.ValidationError) as error:
        raise FileError(f"{path} is no readable ONNX file: {error}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise FileError(f"{path} is no readable ONNX file: it is empty or cut short")
    return model, data


def _model(archive: Archive) -> Any:
    from onnx import ModelProto

    if archive.kind != "onnx":
        raise FileError(f"{archive.path} holds {archive.kind}, not an ONNX model")
    try:
        model = ModelProto.FromString(archive.program)
    except _decode_error() as error:
        raise FileError(f"{archive.path} holds no readable ONNX graph ({error})") from error
    put_tensors(model, archive.values())
    return model


def _decode_error() -> type[Exception]:
    """What protobuf raises on bytes that are no message."""
    from google.protobuf import message  # type: ignore[import-untyped]

    return cast(type[Exception], message.DecodeError)


def _save_in_two(model: Any, out: Path) -> None:
    """Graph and weights in two files, made in a folder of their own and moved together."""
    import onnx

    weights = out.with_name(out.name + ".data")
    try:
        with TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder, out.name)
            onnx.save(model, made, save_as_external_data=True, location=weights.name)
            os.replace(made.with_name(weights.name), weights)
            os.replace(made, out)
    except OSError as error:
        raise FileError(f"{out} can't be written: {error.strerror or error}") from error
