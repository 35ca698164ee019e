# SPDX-License-Identifier: Apache-2.0
"""Whether a QDQ file keeps the rules of TensorRT's explicit quantisation, told without TensorRT.

NVIDIA TensorRT developer guide, "Working with quantized types": signed symmetric int8, one scale for each
tensor of activations, one for each output channel of weights, biases in float.
"""

from typing import TYPE_CHECKING, Any

from rarefy.export.lint import Graph
from rarefy.export.session import Program, read_proto

if TYPE_CHECKING:
    from onnx import ModelProto

READING = {"Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "Add": (0, 1)}


def tensorrt_faults(program: Program) -> list[str]:
    """What TensorRT would not take or would compute in floats, one line each; empty if all is well.

    Args:
        program: a model, its bytes, or the path of a file.
    """
    proto = read_proto(program, copied=False)
    return [*zero_points(proto), *unquantised(proto), *biases(proto)]


def zero_points(proto: "ModelProto") -> list[str]:
    """Quantisers that are not signed or not symmetric."""
    from onnx import TensorProto, numpy_helper

    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    faults = []
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = held.get(node.input[2])
        if zero is None or zero.data_type != TensorProto.INT8:
            faults.append(f"'{node.output[0]}' is not quantised to int8")
        elif numpy_helper.to_array(zero).any():
            faults.append(f"'{node.output[0]}' has a zero point that is not 0")
    return faults


def unquantised(proto: "ModelProto") -> list[str]:
    """Operators of which one input is quantised and another is not."""
    graph = Graph(proto)
    faults = []
    for node in proto.graph.node:
        places = READING.get(node.op_type, ())
        quantised = [is_dequantised(graph, node.input[place]) for place in places]
        if any(quantised) and not all(quantised):
            which = quantised.index(False)
            faults.append(
                f"input {which} of {node.op_type} '{node.output[0]}' is float beside a quantised one"
            )
    return faults


def biases(proto: "ModelProto") -> list[str]:
    """Biases that are integers."""
    makers = Graph(proto).makers
    faults = []
    for node in proto.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            maker = makers.get(node.input[2])
            if maker is not None and maker.op_type == "DequantizeLinear":
                faults.append(f"the bias of {node.op_type} '{node.output[0]}' is quantised")
    return faults


def is_dequantised(graph: Graph, name: str) -> bool:
    """Whether a value comes from DequantizeLinear, moved or not."""
    node: Any = graph.makers.get(name)
    while node is not None and node.op_type in ("Transpose", "Reshape", "Flatten", "MaxPool"):
        node = graph.makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
