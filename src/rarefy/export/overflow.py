# SPDX-License-Identifier: Apache-2.0
"""Whether the int8 weights of a file could overflow 16 bits inside an x86 processor without VNNI."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rarefy.errors import FileError
from rarefy.export.session import Program, read_proto
from rarefy.forms.pairs import overflows

FLOAT = ("LSTM", "GRU", "RNN")  # operators that compute in floats, whatever is put before them


def could_saturate(program: Program) -> bool:
    """Whether two neighbouring products of any int8 weight may exceed 16 bits, see `rarefy.forms.pairs`.

    False for what is no readable model; opening the session will say so.
    """
    from rarefy.store.onnx_arrays import initializer_arrays

    try:
        graph, arrays = initializer_arrays(
            program if isinstance(program, (str, Path)) else read_proto(program, copied=False)
        )
        readers = readers_of_weights(graph)
        return any(
            too_large(torch.from_numpy(codes.copy()), readers[name])
            for name, codes in arrays
            if codes.dtype == "int8" and name in readers and codes.ndim >= 2
        )
    except FileError:
        return False


def readers_of_weights(graph: Any) -> dict[str, list[tuple[Any, int]]]:
    """For codes behind DequantizeLinear, by name, the nodes that read them and at which input."""
    filled = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Pad"}
    codes = {
        n.output[0]: filled.get(n.input[0], n.input[0])
        for n in graph.node
        if n.op_type == "DequantizeLinear"
    }
    recurrent = {name for n in graph.node if n.op_type in FLOAT for name in n.input[1:3]}
    for node in graph.node:  # their weights are stored as matrices
        if node.op_type == "Reshape" and node.input[0] in codes and node.output[0] in recurrent:
            codes[node.output[0]] = codes[node.input[0]]
    found: dict[str, list[tuple[Any, int]]] = {name: [] for name in codes.values()}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in codes and not (node.op_type == "Reshape" and node.output[0] in codes):
                found[codes[name]].append((node, place))
            elif name in found and node.op_type not in ("DequantizeLinear", "Pad"):
                found[name].append((node, place))
    return found


def too_large(codes: torch.Tensor, readers: list[tuple[Any, int]]) -> bool:
    """Whether a weight overflows in one of the nodes that read it; unknown nodes are feared."""
    if not readers:
        return beyond_half(codes)
    return any(in_node(codes, node, place) for node, place in readers)


def in_node(codes: torch.Tensor, node: Any, place: int) -> bool:
    """Whether a weight overflows where it is the input number `place` of a node."""
    if node.op_type in FLOAT:
        return False
    settings: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv" and place == 1:
        return overflows(codes, groups=settings.get("group", 1))
    if node.op_type == "Gemm" and place == 1 and codes.dim() == 2:
        return overflows(codes, axis=0 if settings.get("transB") else 1)
    if node.op_type == "MatMul" and place == 1 and codes.dim() == 2:
        return overflows(codes, axis=1)
    return beyond_half(codes)


def beyond_half(codes: torch.Tensor) -> bool:
    """Whether two of these codes, whichever, could exceed 16 bits: 2 * 255 * 64 = 32,640."""
    return bool(codes.numel()) and int(codes.int().abs().max()) > 64
