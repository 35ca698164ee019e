# SPDX-License-Identifier: Apache-2.0
"""Weights of recurrent operators are stored in the order of gates that ONNX wants, as codes.

The exporter cuts a weight into gates and puts them together anew; on stored codes that would happen in every
run, behind their dequantising. Here the same is done once, to the codes and their scales.
"""

from typing import Any

import numpy as np

from rarefy.export.grouped_codes import Writer
from rarefy.export.integer_products import number

RECURRENT = ("LSTM", "GRU", "RNN")
MOVING = ("Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity")


def order_gates(model: Any) -> None:
    """Replaces moved codes in front of recurrent operators by stored ones.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    for node in list(model.graph):
        if node.op_type in RECURRENT:
            for place in (1, 2):
                moved = upstream(node.inputs[place])
                if moved is not None:
                    store_moved(model.graph, node, place, moved)


def upstream(value: Any) -> tuple[list[Any], list[Any]] | None:
    """The nodes that move codes about before `value`, last one first, and those that dequantise; or None."""
    moving: list[Any] = []
    sources: list[Any] = []
    pending = [value]
    while pending:
        maker = pending.pop(0).producer()
        if maker is None:
            return None
        if maker.op_type == "DequantizeLinear":
            if maker not in sources:
                sources.append(maker)
        elif maker.op_type in MOVING:
            moving.append(maker)
            data = maker.inputs if maker.op_type == "Concat" else maker.inputs[:1]
            pending += data
        else:
            return None
    known = all(constant(v) is not None for s in sources for v in s.inputs)
    blocked = {"block_size" in s.attributes for s in sources}
    return (moving, sources) if moving and known and len(blocked) == 1 else None


def constant(value: Any) -> Any:
    """The array that a value holds, if it is stored, cast or not; else None."""
    from onnx_ir.convenience import get_const_tensor

    maker = value.producer()
    if maker is not None and maker.op_type == "Cast":
        value = maker.inputs[0]
    held = get_const_tensor(value)
    return held.numpy() if held is not None else None


def moved_places(value: Any, moving: list[Any], sources: list[Any]) -> Any:
    """For every entry of `value` which entry of the sources, laid one behind the other, it is."""
    import onnx_ir
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    feed, start = {}, 0
    for source in sources:
        shape = constant(source.inputs[0]).shape
        size = int(np.prod(shape))
        feed[source.outputs[0].name] = np.arange(start, start + size).reshape(shape)
        start += size
    nodes = []
    for node in dict.fromkeys(reversed(moving)):
        nodes.append(onnx_ir.serde.serialize_node(node))
        for held in node.inputs:
            if held is not None and held.name not in feed and constant(held) is not None:
                feed[held.name] = constant(held)
    ends = [helper.make_empty_tensor_value_info(name) for name in feed]
    graph = helper.make_graph(nodes, "m", ends, [helper.make_empty_tensor_value_info(value.name)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return ReferenceEvaluator(proto).run(None, feed)[0]


def store_moved(graph: Any, node: Any, place: int, moved: tuple[list[Any], list[Any]]) -> None:
    """Stores the codes of one input as (directions * gates, inputs), dequantised and reshaped."""
    import onnx_ir

    value, (moving, sources) = node.inputs[place], moved
    places = moved_places(value, in_order(graph, moving), sources)
    columns = places.shape[-1]
    size = number(sources[0], "block_size", columns)
    flat = places.reshape(-1, columns)
    write = Writer(graph, node)
    parts = []
    for i, held in enumerate(sources[0].inputs):
        arrays = [constant(source.inputs[i]) for source in sources]
        every = [
            spread(a, constant(s.inputs[0]).shape, s, size)
            for a, s in zip(arrays, sources, strict=True)
        ]
        found = np.concatenate([a.reshape(-1) for a in every])[flat]
        if i:  # one for each row, or for each group of it
            found = found[:, ::size] if "block_size" in sources[0].attributes else found[:, 0]
        parts.append(stored(graph, held, found, place))
    blocks = (
        {"axis": 1, "block_size": size} if "block_size" in sources[0].attributes else {"axis": 0}
    )
    codes = write("DequantizeLinear", parts, **blocks)
    shape = write("Constant", [], value=onnx_ir.tensor(list(places.shape)))
    result = write("Reshape", [codes, shape])
    graph.insert_before(node, write.made)
    node.replace_input_with(place, result)


def in_order(graph: Any, nodes: list[Any]) -> list[Any]:
    """The nodes, each once, last one first."""
    wanted = {id(node) for node in nodes}
    return [node for node in reversed(list(graph)) if id(node) in wanted]


def spread(array: Any, shape: tuple[int, ...], source: Any, size: int) -> Any:
    """Codes as they are; scales and zero points once for every code that they serve."""
    if array.shape == tuple(shape):
        return array
    if "block_size" in source.attributes:
        return np.repeat(array, size, axis=1)[:, : shape[1]]
    return np.broadcast_to(array.reshape(-1, *[1] * (len(shape) - 1)), shape)


def stored(graph: Any, old: Any, array: Any, place: int) -> Any:
    """A new initialiser named after an old one, with the same cast behind it."""
    import onnx_ir

    cast = old.producer()
    source = old if cast is None else cast.inputs[0]
    name = source.name if source.name.rpartition(".")[0] else f"{source.name}.{place}"
    held, shape = onnx_ir.tensor(np.ascontiguousarray(array), name=name), onnx_ir.Shape(array.shape)
    value = onnx_ir.Value(
        name=name, type=onnx_ir.TensorType(held.dtype), shape=shape, const_value=held
    )
    graph.initializers.pop(name, None)
    graph.initializers[name] = value
    if cast is None:
        return value
    kind = number(cast, "to", 1)
    made = onnx_ir.node("Cast", [value], attributes={"to": kind})
    graph.insert_before(graph[0], [made])
    return made.outputs[0]
