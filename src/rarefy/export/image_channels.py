# SPDX-License-Identifier: Apache-2.0
"""Gives images a fourth channel of zeros before the integer convolution that reads them.

ONNX Runtime's fastest integer convolution takes four inputs at a time; with the three of an image it gathers
every window's bytes one pixel after the other, which costs more than twice the time. Zeros add nothing to a
sum, so results stay the same to the bit. The weight keeps its three inputs in the file and is filled when the
file is loaded.
"""

from typing import Any

from rarefy.export.lean import constant, fresh

COLOURS, FULL = 3, 4


def fill_image_channels(graph: Any) -> None:
    """Puts the fourth channel between quantiser and convolution, where unsigned codes of an image are read.

    Args:
        graph: of an ``onnx_ir.Model``, changed in place.
    """
    import numpy as np
    import onnx_ir

    for node in [node for node in graph if reads_image(node)]:
        image, weight = (value.producer() for value in node.inputs[:2])
        name, rank = fresh(graph, "fourth"), len(constant(weight.inputs[0]).shape)
        widths = np.zeros((2, rank), np.int64)
        widths[1, 1] = FULL - COLOURS
        held = onnx_ir.Value(name=name, const_value=onnx_ir.Tensor(widths.reshape(-1), name=name))
        graph.register_initializer(held)
        for reader, filling in ((image, image.inputs[2:]), (weight, ())):
            filled = onnx_ir.Value(name=fresh(graph, f"{name}_filled"))
            given = [reader.inputs[0], held, *filling]
            graph.insert_before(reader, onnx_ir.Node("", "Pad", given, outputs=[filled]))
            reader.replace_input_with(0, filled)


def reads_image(node: Any) -> bool:
    """Whether a node is a convolution of unsigned codes with three channels that nobody else reads."""
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return False
    makers = [value.producer() for value in node.inputs[:2]]
    if any(m is None or m.op_type != "DequantizeLinear" for m in makers):
        return False
    if any(len(maker.outputs[0].uses()) > 1 or len(maker.inputs) < 3 for maker in makers):
        return False
    zero, codes = constant(makers[0].inputs[2]), constant(makers[1].inputs[0])
    if zero is None or zero.dtype != "uint8" or zero.ndim or codes is None or codes.dtype != "int8":
        return False
    quantised = makers[0].inputs[0].producer()
    if quantised is None or quantised.op_type != "QuantizeLinear":
        return False
    return bool(codes.shape[1] == COLOURS)
