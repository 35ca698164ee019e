# SPDX-License-Identifier: Apache-2.0
"""Masked attention without a search for NaN, so that runtimes recognise it.

What a token computes that may look at none is 0 in PyTorch. Its translation looks for NaN among all
probabilities to that end, and finds none, because it masks with the lowest number instead of minus infinity.
Which tokens those are is known from the mask, which all heads share: they look at all tokens instead, and
what comes of it is multiplied by 0. Everything else is the same to the bit, and OpenVINO computes attention
as one kernel.
"""

from typing import Any

BOOL = 9  # onnx.TensorProto.BOOL
LOWEST = -65504.0  # of float16, the narrowest type


def settle_masks(model: Any) -> None:
    """Rewrites every attention whose probabilities are searched for NaN and whose mask is true or false.

    Args:
        model: ``onnx_ir.Model``, changed in place.
    """
    for node in list(model.graph):
        softmax, product = guarded(node)
        if softmax is None or product is None:
            continue
        scores = softmax.inputs[0].producer()
        for place, term in enumerate(scores.inputs if scores and scores.op_type == "Add" else ()):
            mask = term.producer()
            if mask is not None and masks(mask):
                settle(model.graph, scores, place, mask, product)
                node.outputs[0].replace_all_uses_with(softmax.outputs[0])
                break


def guarded(node: Any) -> tuple[Any, Any]:
    """For Where(IsNaN(P), 0, P) the softmax that makes P and the one product that reads it, else nothing."""
    if (
        node.op_type != "Where"
        or constant(node.inputs[1]) != 0.0
        or node.outputs[0].is_graph_output()
    ):
        return None, None
    found, softmax = node.inputs[0].producer(), node.inputs[2].producer()
    if found is None or found.op_type != "IsNaN" or found.inputs[0] is not node.inputs[2]:
        return None, None
    if softmax is None or softmax.op_type != "Softmax":
        return None, None
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    rank = len(node.inputs[2].shape) if node.inputs[2].shape is not None else 0
    readers = [use.node for use in node.outputs[0].uses()]
    reads = len(readers) == 1 and readers[0].op_type == "MatMul"
    if axis not in (-1, rank - 1) or not reads or readers[0].inputs[0] is not node.outputs[0]:
        return None, None
    return softmax, readers[0]


def masks(node: Any) -> bool:
    """Whether a node makes 0 of true, and of false minus infinity or the lowest number of a type."""
    if node.op_type != "Where":
        return False
    seen, unseen = (constant(value) for value in node.inputs[1:])
    return seen == 0.0 and unseen is not None and unseen <= LOWEST


def constant(value: Any) -> float | None:
    """The number that a value always is, if it is one."""
    import onnx_ir

    tensor = onnx_ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def settle(graph: Any, scores: Any, place: int, mask: Any, product: Any) -> None:
    """Lets tokens that see none see all, and makes their results 0.

    Args:
        graph: that holds all of them.
        scores: the sum of products and mask.
        place: of the mask among its inputs.
        mask: Where(condition, 0, the lowest number).
        product: of probabilities and values.
    """
    import onnx_ir

    made: list[Any] = []

    def write(operator: str, inputs: list[Any], **attributes: Any) -> Any:
        made.append(onnx_ir.node(operator, inputs, attributes=attributes))
        return made[-1].outputs[0]

    condition, zero, lowest = mask.inputs
    last = write("Constant", [], value=onnx_ir.tensor([-1]))
    seen = write("CastLike", [condition, zero])
    seen = write("ReduceMax", [seen, last], keepdims=1)
    none = write("Not", [write("Cast", [seen], to=BOOL)])
    settled = write("Where", [write("Or", [condition, none]), zero, lowest])
    settled.type, settled.shape = mask.outputs[0].type, mask.outputs[0].shape
    graph.insert_before(scores, made)
    scores.replace_input_with(place, settled)
    old = product.outputs[0]
    readers = list(old.uses())
    kept = onnx_ir.node("Mul", [old, seen])
    result = kept.outputs[0]
    result.type, result.shape = old.type, old.shape
    graph.insert_after(product, kept)
    for node, number in readers:
        node.replace_input_with(number, result)
    if old.is_graph_output():
        for number, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[number] = result
        result.name, old.name = old.name, f"{old.name}.unmasked"
