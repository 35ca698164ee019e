# SPDX-License-Identifier: Apache-2.0
"""Leaves out of an ONNX graph what a reader fills in: defaults, zeros, numbers that follow from others.

Of a small int8 network scales, biases and zero points are a tenth of the file. A bias has the scale of the
input times that of the weight, so it is multiplied when the file is loaded; scales that 16 bits hold are
stored in 16, and zeros are rounded from them. Runtimes fold all three before they look for integer kernels.
"""

from typing import Any

WORTH = 16  # numbers below which a node costs more than it saves
MANY = 64  # the same of bytes
HOLDER = "activation_quantizers.quantizers."
ZEROS, ONES = {"pads"}, {"strides", "dilations"}


def lean(model: Any) -> None:
    """Makes a graph's file smaller; what it computes stays the same to the bit.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    derive_bias_scales(model.graph)
    halve_scales(model.graph)
    derive_zero_points(model.graph)
    share_bounds(model.graph)
    leave_defaults_out(model)
    drop_unread(model.graph)
    shorten(model.graph)


def constant(value: Any) -> Any:
    """The array of an initialiser that is no input of the network, or None."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return None if value.is_graph_input() else value.const_value.numpy()


def of_weights(graph: Any) -> list[Any]:
    """The DequantizeLinear nodes that read an initialiser."""
    return [
        node
        for node in graph
        if node.op_type == "DequantizeLinear"
        and node.domain in ("", "ai.onnx")
        and constant(node.inputs[0]) is not None
    ]


def fresh(graph: Any, name: str) -> str:
    """A name that no value has yet."""
    taken = {value.name for node in graph for value in (*node.inputs, *node.outputs) if value}
    taken |= set(graph.initializers)
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def derive_bias_scales(graph: Any) -> None:
    """Replaces the scale of a bias by the product of those of input and weight, where it is just that."""
    import numpy as np
    import onnx_ir

    for node in of_weights(graph):
        scale, readers = constant(node.inputs[1]), [use.node for use in node.outputs[0].uses()]
        if scale is None or scale.size < WORTH or len(readers) != 1 or len(readers[0].inputs) < 3:
            continue
        if readers[0].inputs[2] is not node.outputs[0]:
            continue
        factors = [scale_of(value) for value in readers[0].inputs[:2]]
        arrays = [constant(factor) for factor in factors]
        if any(array is None or array.dtype != scale.dtype for array in arrays):
            continue
        if not np.array_equal(arrays[0] * arrays[1], scale):
            continue
        name = fresh(graph, "step")
        made = onnx_ir.node("Mul", factors, outputs=[onnx_ir.Value(name=name)])
        graph.insert_before(node, made)
        node.replace_input_with(1, made.outputs[0])


def scale_of(value: Any) -> Any:
    """The scale of what a DequantizeLinear gives, or None."""
    maker = value.producer() if value is not None else None
    return maker.inputs[1] if maker is not None and maker.op_type == "DequantizeLinear" else None


def halve_scales(graph: Any) -> None:
    """Stores the scales of weights in 16 bits where that changes none of them."""
    import numpy as np
    import onnx_ir

    for node in of_weights(graph):
        held = node.inputs[1]
        scale = constant(held)
        if scale is None or scale.dtype != np.float32 or scale.size < WORTH:
            continue
        with np.errstate(over="ignore", under="ignore"):
            half = scale.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), scale):
            continue
        wide = onnx_ir.Value(name=fresh(graph, "scale"), type=held.type, shape=held.shape)
        first = next(n for n in graph if any(value is held for value in n.inputs))
        held.replace_all_uses_with(wide)
        to = [onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT.value)]
        graph.insert_before(first, onnx_ir.Node("", "Cast", [held], to, outputs=[wide]))
        held.const_value = onnx_ir.Tensor(half, name=held.name)
        held.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)


def derive_zero_points(graph: Any) -> None:
    """Makes the zeros of weights, where their scales have 16 bits, of those, which end below one.

    Equal zeros can't be one initialiser: ONNX Runtime may rewrite each of them under a name made of its own.
    """
    import onnx_ir

    for node in of_weights(graph):
        widened = node.inputs[1].producer()
        zeros = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if widened is None or widened.op_type != "Cast" or zeros is None or zeros.dtype != "int8":
            continue
        scale = constant(widened.inputs[0])
        if zeros.size < MANY or zeros.any() or scale is None or scale.max() >= 1:
            continue
        kind = [onnx_ir.AttrInt64("to", onnx_ir.DataType.INT8.value)]
        value = onnx_ir.Value(name=fresh(graph, "zero_point"))
        graph.insert_before(
            node, onnx_ir.Node("", "Cast", widened.inputs[:1], kind, outputs=[value])
        )
        node.replace_input_with(2, value)


def share_bounds(graph: Any) -> None:
    """Lets equal bounds of clips be one initialiser."""
    first: dict[Any, Any] = {}
    for node in graph:
        for place, value in enumerate(node.inputs if node.op_type == "Clip" else ()):
            array = constant(value)
            if array is not None:
                key = (array.dtype.str, array.shape, array.tobytes())
                node.replace_input_with(place, first.setdefault(key, value))


def leave_defaults_out(model: Any) -> None:
    """Drops attributes that say what holds without them."""
    from onnx import defs, helper

    version = model.graph.opset_imports.get("", 1)
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type, ""):
            continue
        known = defs.get_schema(node.op_type, version, "").attributes
        for name, attribute in list(node.attributes.items()):
            default = known[name].default_value if name in known else None
            value = attribute.value
            if default is not None and default.name:
                default = helper.get_attribute_value(default)
                idle = value == (default.decode() if isinstance(default, bytes) else default)
            else:
                spatial = node.op_type == "Conv" and name in ZEROS | ONES
                idle = spatial and set(value) == {int(name in ONES)}
            if idle or (name == "axis" and one_scale(node)):
                del node.attributes[name]


def one_scale(node: Any) -> bool:
    """Whether a node rounds all its values with one scale, so that it has no axis."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    scale = constant(node.inputs[1])
    return scale is not None and scale.ndim == 0


def drop_unread(graph: Any) -> None:
    """Takes away the initialisers that nobody reads any more."""
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for name, value in list(graph.initializers.items()):
        if not value.uses() and id(value) not in kept:
            del graph.initializers[name]


def shorten(graph: Any) -> None:
    """Names the grids of activations ``activation.0.scale``, whichever module holds their quantisers."""
    held = graph.initializers
    for name, value in list(held.items()):
        wanted = name.replace(HOLDER, "activation.")
        if wanted != name and wanted not in held:
            del held[name]
            value.name = wanted
            held[wanted] = value


def number_nodes(graph: Any) -> None:
    """Calls the nodes of a quantised network ``n0``, ``n1``, …"""
    if any(node.op_type == "QuantizeLinear" for node in graph):
        # no other quantiser will look for names, but ONNX Runtime calls what it adds after them
        for number, node in enumerate(graph):
            node.name = f"n{number}"
