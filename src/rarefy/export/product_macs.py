# SPDX-License-Identifier: Apache-2.0
"""How many multiply-accumulates the convolutions and matrix products of a file take for given inputs."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.task import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto

Shapes = Mapping[str, tuple[int, ...]]


def macs_of(proto: "ModelProto", nodes: Mapping[str, Any], inputs: Inputs) -> dict[str, int]:
    """Multiply-accumulates of nodes, by the names that they are given under.

    Args:
        proto: the file.
        nodes: of its graph; kinds without a rule are left out.
        inputs: a batch, padded where the file takes a larger one only.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    wanted = dict.fromkeys(v for n in nodes.values() for v in (n.input[0], n.output[0]))
    known = {*shapes, *(value.name for value in (*proto.graph.input, *proto.graph.output))}
    asked = [name for name in wanted if name and name not in known]
    runner = OnnxRuntime(proto, threads=1, outputs=asked)
    feed = runner.feed(inputs)
    if runner.batch is not None:
        rows = torch.arange(runner.batch)
        feed = {name: value[rows.clamp(max=len(value) - 1)] for name, value in feed.items()}
    results = dict(zip(runner.output_names, runner.run(feed), strict=True))
    shapes |= {name: tuple(value.shape) for name, value in (feed | results).items()}
    found = {name: of_node(node, shapes, makers) for name, node in nodes.items()}
    return {name: count for name, count in found.items() if count is not None}


def of_node(node: Any, shapes: Shapes, makers: Mapping[str, Any]) -> int | None:
    """Multiply-accumulates of one node; None for a kind without a rule."""
    given, taken = shapes.get(node.output[0], ()), shapes[node.input[0]]
    if node.op_type == "Conv":  # weight (O, I / groups, ...)
        return prod(given) * weights(node.input[1], shapes, makers) // given[1]
    if node.op_type == "ConvTranspose":  # weight (I, O / groups, ...)
        return prod(taken) * weights(node.input[1], shapes, makers) // taken[1]
    if node.op_type == "DynamicQuantizeLSTM":  # every step reads both matrices once
        both = sum(weights(name, shapes, makers) for name in node.input[1:3])
        return taken[0] * taken[1] * both
    if node.op_type == "Gemm":
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(given) * taken[0 if turned else 1]
    return prod(given) * taken[-1] if taken else None


def weights(name: str, shapes: Shapes, makers: Mapping[str, Any]) -> int:
    """How many numbers a weight has, found behind what dequantises or turns it."""
    while name not in shapes:
        name = makers[name].input[0]
    return prod(shapes[name])
