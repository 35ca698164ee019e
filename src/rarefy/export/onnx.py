# SPDX-License-Identifier: Apache-2.0
"""The network as an ONNX file of standard operators, weights in the form in which they are stored."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rarefy.errors import FileError, ModelError
from rarefy.export.contributed import CONTRIBUTED

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from rarefy.task import Inputs

LIMIT = 2**31 - 1
STANDARD = ("", "ai.onnx")


def export_onnx(
    model: "nn.Module",
    example: "Inputs",
    *,
    inputs: Sequence[str] | None = None,
    runtime: str = "onnxruntime",
) -> "ModelProto":
    """Exports what `model` computes in eval mode; the model itself stays as it is.

    Weights are finished first: a mask becomes zeros, a codebook values of few levels, a grid int8 codes
    behind DequantizeLinear (one scale per channel). Quantised activations become QuantizeLinear and
    DequantizeLinear, which ONNX Runtime fuses to integer operators. Weights keep the network's names; the
    codes of a quantised ``conv1.weight`` carry its name, with ``conv1.weight.scale`` (in 16 bits if these
    hold it) and ``conv1.weight.zero_point`` beside them. The first axis of every input is open (``batch``) if
    the network allows it. Same network, same bytes.

    Args:
        model: on any device.
        example: inputs, batch first; their sizes other than the batch are fixed in the file.
        inputs: names of the inputs in the file, in order; default: those of forward's arguments.
        runtime: in which the file is to be fast; every runtime computes the same from it.

    Raises:
        ModelError: the network can't be traced, has an operator that standard ONNX lacks, or exceeds 2 GB.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> proto = export_onnx(net, torch.randn(1, 4))
        >>> [node.op_type for node in proto.graph.node]
        ['Gemm', 'Relu']
    """
    return to_proto(graph_of(model, example, inputs, runtime))


def graph_of(
    model: "nn.Module",
    example: "Inputs",
    inputs: Sequence[str] | None = None,
    runtime: str = "onnxruntime",
) -> Any:
    """The exported graph (``onnx_ir.Model``) whose nodes still know which module they came from.

    Raises:
        ModelError: as `export_onnx`.
    """
    from rarefy.export.finished import finished
    from rarefy.export.image_channels import fill_image_channels
    from rarefy.export.lean import lean, number_nodes
    from rarefy.export.reuse import captured
    from rarefy.export.tidy import tidy

    check_names(example, inputs)
    graph = tidy(captured(finished(model), example))
    foreign = sorted(
        {
            f"{node.domain}::{node.op_type}"
            for node in graph.graph.all_nodes()
            if node.domain not in STANDARD and (node.domain, node.op_type) not in CONTRIBUTED
        }
    )
    if foreign or len(graph.functions):
        raise ModelError(f"the exported network uses operators outside standard ONNX: {foreign}")
    lean(graph)
    if runtime != "openvino":  # whose kernels take three channels as well as four
        fill_image_channels(graph.graph)
    number_nodes(graph.graph)
    name_ends(graph.graph, inputs)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    if size > LIMIT:
        raise ModelError(f"the network's weights take {size:,} bytes, but an ONNX file holds 2 GB")
    return graph


def check_names(example: "Inputs", inputs: Sequence[str] | None) -> None:
    """Whether there is one name for every input.

    Raises:
        ModelError: there are fewer or more, or one is given twice.
    """
    from rarefy.task import tensors_of

    count = len(tensors_of(example))
    if inputs is not None and (len(inputs) != count or len(set(inputs)) != count):
        raise ModelError(
            f"the network takes {count} inputs, but was given the names {', '.join(inputs)}; "
            "give one name for each, none twice"
        )


def name_ends(graph: Any, inputs: Sequence[str] | None) -> None:
    """Names the inputs as asked, the outputs ``output`` or ``output_0``, ``output_1``, …"""
    wanted = list(inputs or (value.name for value in graph.inputs))
    several = len(graph.outputs) > 1
    wanted += [f"output_{i}" if several else "output" for i in range(len(graph.outputs))]
    ends = [*graph.inputs, *graph.outputs]
    inner = {v.name: v for node in graph for v in node.outputs} | dict(graph.initializers)
    taken = set(inner) - {value.name for value in ends}
    for value, name in zip(ends, wanted, strict=True):
        while name in taken:
            name += "_"
        if value.is_initializer():
            continue
        value.name = name


def to_proto(graph: Any) -> "ModelProto":
    """The file's content: `graph` without what only debuggers read, open axes named ``batch``."""
    import onnx_ir

    from rarefy import __version__
    from rarefy.store.pack import strip_onnx

    proto = onnx_ir.serde.serialize_model(graph)
    strip_onnx(proto)
    proto.producer_name, proto.producer_version = "rarefy", __version__
    proto.graph.name = "network"
    name_axes(proto)
    return proto


def write_onnx(
    model: "nn.Module",
    example: "Inputs",
    path: Path,
    *,
    inputs: Sequence[str] | None = None,
    runtime: str = "onnxruntime",
) -> int:
    """Exports what `model` computes to the file that `export_onnx` and `save_onnx` would write.

    The weights go from where they are to the disk, so no copy of them is made.

    Returns:
        The file's size in bytes.

    Raises:
        ModelError: as `export_onnx`.
        FileError: as `save_onnx`.
    """
    from rarefy.store.onnx_file import Data, write_model

    graph = graph_of(model, example, inputs, runtime)
    weights = take_weights(list(graph.graph.initializers.values()))
    proto, data = to_proto(graph), {}
    for place, head in enumerate(proto.graph.initializer):
        tensor = weights.get(head.name)
        if tensor is not None:
            head.ClearField("raw_data")
            head.dims[:] = tensor.shape.numpy()
            data[place] = Data(tensor.nbytes, tensor.numpy)
    return into_file(path, lambda file: write_model(file, proto, data))


def take_weights(values: Sequence[Any]) -> dict[str, Any]:
    """The larger tensors of initialisers by name, empty ones left in their places.

    Types of less than a byte stay: they are packed when they are written.
    """
    import numpy as np
    import onnx_ir

    from rarefy.store.onnx_file import LEAST

    taken = {}
    for value in values:
        tensor = value.const_value
        if tensor.nbytes >= LEAST and tensor.dtype.bitwidth >= 8:
            taken[value.name] = tensor
            empty = np.zeros(0, tensor.dtype.numpy())
            value.const_value = onnx_ir.Tensor(empty, dtype=tensor.dtype, name=value.name)
    return taken


def name_axes(proto: "ModelProto") -> None:
    """Calls the open axes of inputs and outputs ``batch``, ``batch_1``, …"""
    names: dict[str, str] = {}
    dims = [
        dim
        for value in (*proto.graph.input, *proto.graph.output)
        for dim in value.type.tensor_type.shape.dim
        if dim.HasField("dim_param")
    ]
    for dim in dims:
        if dim.dim_param.isdigit():
            dim.dim_value = int(dim.dim_param)  # an axis that the network turned out to fix
            continue
        for symbol in re.findall(r"[A-Za-z_]\w*", dim.dim_param):
            names.setdefault(symbol, f"batch_{len(names)}" if names else "batch")
        dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: names[m[0]], dim.dim_param)


def save_onnx(proto: "ModelProto", path: Path) -> int:
    """Writes an ONNX file in one move and returns its size in bytes.

    Raises:
        FileError: it can't be written; nothing is left behind.
    """
    return into_file(path, lambda file: file.write(proto.SerializeToString(deterministic=True)))


def into_file(path: Path, write: Callable[[BinaryIO], Any]) -> int:
    """Writes a file in one move and returns its size in bytes.

    Raises:
        FileError: it can't be written; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
        os.replace(partial, path)
    except OSError as error:
        raise FileError(f"'{path}' can't be written: {error.strerror or error}") from error
    finally:
        if partial.is_file():
            partial.unlink()
    return path.stat().st_size
