# SPDX-License-Identifier: Apache-2.0
"""Where a program's intermediate results can lie in one arena, those that never live together sharing bytes.

A result lives from the node that makes it to the last node that reads it. Larger ones are placed
first, each at the lowest address that no result of overlapping life occupies (Pisarchyk, Lee:
Efficient Memory Management for Deep Neural Net Inference, 2020, arXiv 2001.03288, "greedy by size").
No plan can need less than the bytes that are alive at one moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Life:
    """One result: its name, its bytes, and the first and last node of its life, both included."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: "Life") -> bool:
        """Whether both are alive at some node."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Addresses of results in an arena of `size` bytes."""

    addresses: Mapping[str, int]
    size: int


def plan_buffers(lives: Sequence[Life], alignment: int = 64) -> Plan:
    """Place results in an arena.

    Args:
        lives: of all results.
        alignment: addresses are multiples of it.

    Examples:
        >>> plan_buffers([Life("a", 64, 0, 1), Life("b", 64, 1, 2), Life("c", 64, 2, 3)]).size
        128
    """
    placed: list[tuple[int, int, Life]] = []
    addresses: dict[str, int] = {}
    for life in sorted(lives, key=lambda one: (-one.size, one.first, one.name)):
        address = 0
        for start, end, other in sorted(placed, key=lambda item: item[:2]):
            if life.meets(other) and address + life.size > start and end > address:
                address = -(-end // alignment) * alignment
        addresses[life.name] = address
        placed.append((address, address + life.size, life))
    return Plan(addresses, max((end for _, end, _ in placed), default=0))


def most_alive(lives: Sequence[Life]) -> int:
    """The most bytes alive at one node: the lower bound of every plan."""
    moments = {life.first for life in lives}
    return max(
        (sum(x.size for x in lives if x.first <= now <= x.last) for now in moments), default=0
    )


def lives_of(model: Any) -> list[Life]:
    """The intermediate results of an ONNX model, inputs included, with static shapes.

    Args:
        model: an `onnx.ModelProto`; dimensions that are not known count as 1.
    """
    from onnx import helper, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        size = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize if tensor.elem_type else 4
        for dimension in tensor.shape.dim:
            size *= dimension.dim_value or 1
        sizes[value.name] = size
    constants = {item.name for item in graph.initializer}
    first = {value.name: 0 for value in graph.input if value.name not in constants}
    last = dict(first)
    for number, node in enumerate(graph.node):
        for name in node.output:
            first[name] = last[name] = number
        for name in node.input:
            if name in last:
                last[name] = number
    for value in graph.output:
        if value.name in last:
            last[value.name] = len(graph.node)
    return [Life(name, sizes.get(name, 0), first[name], last[name]) for name in first if name]
