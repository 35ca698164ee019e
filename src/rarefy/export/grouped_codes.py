# SPDX-License-Identifier: Apache-2.0
"""Weights with a scale for every few codes, laid out as runtimes look for them, two codes of 4 bits a byte.

ONNX Runtime computes MatMul of a DequantizeLinear in blocks along the first axis of (in, out) codes without
ever dequantising the whole weight; a table's rows are looked up as codes.
"""

from typing import Any

from rarefy.export.integer_products import number, plain, source

FLOAT, INT64 = 1, 7  # onnx.TensorProto
HIGH, MASK = 4, 15  # bits of half a byte


def lay_out_groups(model: Any) -> None:
    """Turns weights round, looks rows of tables up as codes, and packs codes of 4 bits.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    for node in list(model.graph):
        if node.op_type in ("MatMul", "Gemm"):
            multiply(model.graph, node)
        elif node.op_type == "Gather" and not number(node, "axis", 0):
            table = source(node, 0, "DequantizeLinear")
            if table is not None and "block_size" in table.attributes:
                look_up(model.graph, node, table)
    for node in list(model.graph):
        if node.op_type == "Cast" and narrow_type(node) is not None:
            narrow(model.graph, node)


def narrow_type(node: Any) -> Any:
    """The 4-bit type to which a Cast converts, or None."""
    import onnx_ir

    kind = onnx_ir.DataType(number(node, "to", FLOAT))
    return kind if kind.name in ("INT4", "UINT4") else None


class Writer:
    """Collects nodes that take another's place.

    Args:
        graph: to write to.
        node: in front of which they stand in the end.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        self.graph, self.node = graph, node
        self.made: list[Any] = []

    def __call__(self, operator: str, inputs: list[Any], **attributes: Any) -> Any:
        """The result of a new node."""
        import onnx_ir

        self.made.append(onnx_ir.node(operator, inputs, attributes=attributes))
        return self.made[-1].outputs[0]

    def numbers(self, values: list[Any], kind: int = INT64) -> Any:
        """A constant."""
        import onnx_ir

        return self("Constant", [], value=onnx_ir.tensor(values, dtype=onnx_ir.DataType(kind)))

    def finish(self, result: Any) -> None:
        """Puts the result in the place of the node's."""
        old = self.node.outputs[0]
        result.name, result.type, result.shape = old.name, old.type, old.shape
        self.graph.insert_before(self.node, self.made)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)


def multiply(graph: Any, node: Any) -> None:
    """Writes a product with (out, in) codes as MatMul with (in, out) codes, and adds the bias."""
    turned = source(node, 1, "Transpose")
    weight = source(
        node if turned is None else turned, 1 if turned is None else 0, "DequantizeLinear"
    )
    if weight is None or "block_size" not in weight.attributes or not plain(node):
        return
    if (turned is not None) == (node.op_type == "Gemm" and number(node, "transB", 0) == 1):
        return  # (in, out) already
    write = Writer(graph, node)
    parts = [turned_round(write, value) for value in weight.inputs]
    size = number(weight, "block_size", 0)
    codes = write("DequantizeLinear", parts, axis=0, block_size=size)
    result = write("MatMul", [node.inputs[0], codes])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = write("Add", [result, node.inputs[2]])
    write.finish(result)


def turned_round(write: Writer, value: Any) -> Any:
    """The transpose of a stored matrix, stored itself where nothing else reads that."""
    import onnx_ir

    cast = value.producer()
    stored = value if cast is None else cast.inputs[0]
    if len(value.uses()) > 1 or len(stored.uses()) > 1 or stored.const_value is None:
        return write("Transpose", [value], perm=[1, 0])
    array = stored.const_value.numpy().transpose().copy()
    stored.const_value = onnx_ir.Tensor(array, name=stored.name)
    stored.shape = onnx_ir.Shape(array.shape)
    value.shape = onnx_ir.Shape(array.shape)
    return value


def look_up(graph: Any, node: Any, table: Any) -> None:
    """Rows of codes, scales and zero points, dequantised behind the look-up, each column by its group's.

    Written out: OpenVINO's DequantizeLinear in blocks takes stored codes alone.
    """
    write, index = Writer(graph, node), node.inputs[1]
    columns, size = int(table.inputs[0].shape[1]), number(table, "block_size", 0)
    scale = write("Gather", [table.inputs[1], index], axis=0)
    codes, zero = (rows(write, value, index) for value in (table.inputs[0], table.inputs[2]))
    if columns > size:
        group = write.numbers([column // size for column in range(columns)])
        scale, zero = (write("Gather", [value, group], axis=-1) for value in (scale, zero))
    write.finish(write("Mul", [write("Sub", [codes, zero]), scale]))


def rows(write: Writer, value: Any, index: Any) -> Any:
    """Rows of a stored matrix as floats; of 4 bits and an even number of columns two lie in a byte.

    The upper half is found by arithmetic: OpenVINO's BitShift rounds.
    """
    import numpy as np
    import onnx_ir

    cast = value.producer()
    stored = value if cast is None else cast.inputs[0]
    array = stored.const_value.numpy() if stored.const_value is not None else None
    alone = len(stored.uses()) == 1 and len(value.uses()) == 1
    if cast is None or array is None or array.shape[1] % 2 or not alone:
        return write("Cast", [write("Gather", [stored, index], axis=0)], to=FLOAT)
    signed = array.dtype == np.int8
    nibbles = (array.astype(np.int16) + 8 * signed).astype(np.uint8)
    packed = nibbles[:, ::2] | nibbles[:, 1::2] << HIGH
    stored.const_value = onnx_ir.Tensor(packed, name=stored.name)
    stored.shape, stored.dtype = onnx_ir.Shape(packed.shape), onnx_ir.DataType.UINT8
    found = write("Unsqueeze", [write("Gather", [stored, index], axis=0), write.numbers([-1])])
    low = write("BitwiseAnd", [found, write.numbers([MASK], onnx_ir.DataType.UINT8.value)])
    low, both = (write("Cast", [value], to=FLOAT) for value in (low, found))
    high = write("Mul", [write("Sub", [both, low]), write.numbers([2.0**-HIGH], FLOAT)])
    pairs = write("Concat", [low, high], axis=-1)
    flat = write("Reshape", [pairs, write.numbers([*[0] * len(index.shape), -1])])
    return write("Sub", [flat, write.numbers([8.0], FLOAT)]) if signed else flat


def narrow(graph: Any, node: Any) -> None:
    """Stores an initialiser in the 4 bits to which it is cast."""
    import onnx_ir

    held, kind = node.inputs[0], narrow_type(node)
    array = held.const_value.numpy().astype(kind.numpy())
    result = node.outputs[0]
    name = f"{held.name}" if len(held.uses()) == 1 else f"{held.name}.narrow"
    if len(held.uses()) == 1:
        del graph.initializers[held.name]
    new = onnx_ir.Value(
        name=name,
        type=onnx_ir.TensorType(kind),
        shape=onnx_ir.Shape(array.shape),
        const_value=onnx_ir.Tensor(array, dtype=kind, name=name),
    )
    graph.initializers[name] = new
    result.replace_all_uses_with(new)
    graph.remove(node, safe=True)
