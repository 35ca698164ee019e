# SPDX-License-Identifier: Apache-2.0
"""Products of two tensors of codes are written as MatMulInteger, and rows are looked up as codes.

A dynamic quantiser is captured as DynamicQuantizeLinear and DequantizeLinear, a weight as DequantizeLinear;
runtimes would multiply such a pair in floats. What stands here computes the same: the codes are multiplied,
and the 32-bit sums take the product of both scales, which ONNX Runtime fuses to one kernel.
"""

from typing import Any

FLOAT = 1  # onnx.TensorProto.FLOAT


def multiply_codes(model: Any) -> None:
    """Rewrites MatMul and Gemm of a dynamically quantised input and an int8 weight, zero point 0.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    for node in list(model.graph):
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        read, weight = source(node, 0, "DequantizeLinear"), weight_of(node)
        maker = source(read, 0, "DynamicQuantizeLinear") if read is not None else None
        if maker is not None and weight is not None and plain(node):
            replace(model.graph, node, read, weight)


def source(node: Any, place: int, operator: str) -> Any:
    """The node that makes an input, if it is of that operator."""
    value = node.inputs[place]
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == operator else None


def weight_of(node: Any) -> tuple[Any, bool] | None:
    """The DequantizeLinear of a product's weight, and whether its codes (in, out) are still turned round."""
    turned = source(node, 1, "Transpose")
    found = source(
        turned if turned is not None else node, 0 if turned is not None else 1, "DequantizeLinear"
    )
    if found is None or found.inputs[0].const_value is None or "block_size" in found.attributes:
        return None
    codes = found.inputs[0]
    zero = found.inputs[2] if len(found.inputs) > 2 else None
    if codes.dtype is None or codes.dtype.name != "INT8" or len(codes.shape or ()) != 2:
        return None
    if zero is not None and (zero.const_value is None or zero.const_value.numpy().any()):
        return None
    flips = (turned is not None) != bool(node.op_type == "Gemm" and number(node, "transB", 0))
    axis = number(found, "axis", 1)
    per_output = found.inputs[1].const_value.numpy().ndim == 0 or axis % 2 == (0 if flips else 1)
    return (found, flips) if per_output else None


def plain(node: Any) -> bool:
    """Whether a product multiplies its two inputs and no more than adds a bias."""
    factors = all(
        name not in node.attributes or node.attributes[name].as_float() == 1.0
        for name in ("alpha", "beta")
    )
    return factors and not number(node, "transA", 0)


def number(node: Any, name: str, default: int) -> int:
    """An integer attribute."""
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def replace(graph: Any, node: Any, read: Any, weight: tuple[Any, bool]) -> None:
    """Puts MatMulInteger and what scales its sums in the place of a product."""
    import onnx_ir

    codes_of, flips = weight
    x, x_scale, x_zero = read.inputs
    codes, made = codes_of.inputs[0], []

    def write(operator: str, inputs: list[Any], **attributes: Any) -> Any:
        made.append(onnx_ir.node(operator, inputs, attributes=attributes))
        return made[-1].outputs[0]

    if flips:
        codes = write("Transpose", [codes], perm=[1, 0])
    total = write("Cast", [write("MatMulInteger", [x, codes, x_zero])], to=FLOAT)
    result = write("Mul", [total, write("Mul", [x_scale, codes_of.inputs[1]])])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        result = write("Add", [result, bias])
    old = node.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def look_codes_up(model: Any) -> None:
    """Turns Gather(DequantizeLinear(table)) into the dequantised rows of Gather(table).

    Else a runtime would dequantise the whole table to look up a few rows.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    for node in list(model.graph):
        table = source(node, 0, "DequantizeLinear") if node.op_type == "Gather" else None
        if table is None or number(node, "axis", 0) != 0 or table.inputs[0].const_value is None:
            continue
        if "block_size" in table.attributes or number(table, "axis", 1) == 0:
            dequantise_rows(model.graph, node, table)


def dequantise_rows(graph: Any, node: Any, table: Any) -> None:
    """Codes, scales and zero points are looked up, then the rows are dequantised."""
    import onnx_ir

    made: list[Any] = []

    def write(operator: str, inputs: list[Any], **attributes: Any) -> Any:
        made.append(onnx_ir.node(operator, inputs, attributes=attributes))
        return made[-1].outputs[0]

    index, given = node.inputs[1], [value for value in table.inputs if value is not None]
    if (
        len(given) > 2
        and given[2].const_value is not None
        and not given[2].const_value.numpy().any()
    ):
        given = given[:2]  # a zero point of 0 says nothing
    looked = [write("Gather", [value, index], axis=0) for value in given]
    if "block_size" in table.attributes:
        settings = {"axis": -1, "block_size": number(table, "block_size", 0)}
        result = write("DequantizeLinear", looked, **settings)
    else:
        last = onnx_ir.tensor([-1], dtype=onnx_ir.DataType.INT64)
        axis = write("Constant", [], value=last)
        floats = [write("Cast", [value], to=FLOAT) for value in (looked[0], *looked[2:])]
        if len(floats) > 1:
            floats = [write("Sub", [floats[0], write("Unsqueeze", [floats[1], axis])])]
        result = write("Mul", [floats[0], write("Unsqueeze", [looked[1], axis])])
    old = node.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
