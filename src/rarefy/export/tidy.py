# SPDX-License-Identifier: Apache-2.0
"""Cleans a translated ONNX graph without touching a weight: a weight is stored as the network holds it.

Batch norms are left unfused on purpose: fusing them would scale every channel by its own factor, and a weight
of 16 shared values would become one of many. Runtimes fuse them when they load the file.
"""

import re
from collections.abc import Callable
from typing import Any

from rarefy.export.capture import quiet
from rarefy.export.grouped_codes import lay_out_groups, narrow_type
from rarefy.export.integer_products import look_codes_up, multiply_codes
from rarefy.export.masked_attention import settle_masks
from rarefy.export.recurrent_weights import order_gates

SMALL = 1 << 20  # bytes of a constant that is looked at
PARAMETRIZED = re.compile(r"(.*)parametrizations\.(\w+)\.(?:original|\d+\.(\w+))")


def tidy(model: Any) -> Any:
    """Folds small constants, drops what does nothing, names weights as the network does.

    Args:
        model: ``onnx_ir.Model``, changed in place.

    Returns:
        The same model.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    common.InlinePass()(model)
    for _ in range(2):
        with quiet():  # it logs what it can't compute and leaves
            optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=spares(model))
        rewriter.rewrite(model, rules())
    common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    settle_masks(model)
    transpose_codes(model)
    multiply_codes(model)
    order_gates(model)
    common.RemoveUnusedNodesPass()(model)
    lay_out_groups(model)
    look_codes_up(model)
    share_factors(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)
    rename(model)
    return model


def spares(model: Any) -> Callable[[Any], bool | None]:
    """Tells the folding to leave alone what reads a weight; a runtime folds it when it loads the file."""
    kind = "pkg.torch.export.graph_signature.InputSpec.kind"
    weights = {
        name
        for name, value in model.graph.initializers.items()
        if "PARAMETER" in value.metadata_props.get(kind, "") and len(value.shape or ()) > 1
    }

    def decide(node: Any) -> bool | None:
        if node.op_type == "Cast" and narrow_type(node) is not None:
            return False  # `rarefy.export.grouped_codes` does so under the weight's own name
        return False if any(i is not None and i.name in weights for i in node.inputs) else None

    return decide


def rules() -> list[Any]:
    """Rewrites that simplify shapes, casts, paddings and missing biases; none changes a weight."""
    from onnxscript.rewriter.rules import common as known

    return [
        known.cast_cast_rule,
        known.no_op_cast_rule,
        known.no_op_expand_rule,
        known.no_op_transpose_rule,
        known.reshape_reshape_rule,
        known.squeeze_reshape_1d_rule,
        known.transpose_transpose_rule,
        known.unsqueeze_unsqueeze_rule,
        known.collapse_slice_rule,
        known.collapse_slice2_rule,
        known.materialize_reshape_shape_rule,
        known.add_0_rule,
        known.sub_0_rule,
        known.mul_by_1_rule,
        known.div_by_1_rule,
        known.dropout_inference_rule,
        known.dropout_zero_rule,
        known.cast_constant_of_shape_rule,
        known.cast_constant_of_shape_without_value_rule,
        known.remove_optional_bias_from_conv_rule,
        known.remove_optional_bias_from_conv_transpose_rule,
        known.remove_optional_bias_from_gemm_rule,
        known.fuse_pad_into_conv_rule,
    ]


def transpose_codes(model: Any) -> None:
    """Turns Transpose(DequantizeLinear(codes)) into DequantizeLinear(transposed codes).

    Else the matrix multiplication behind it would not stand next to its DequantizeLinear, and runtimes that
    look for that pair would multiply in floats.
    """
    import onnx_ir

    graph = model.graph
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        if "block_size" in source.attributes:  # `rarefy.export.grouped_codes` turns these
            continue
        codes = source.inputs[0]
        alone = len(source.outputs[0].uses()) == 1 and len(codes.uses()) == 1
        if not alone or codes.const_value is None or not codes.is_initializer():
            continue
        order = list(node.attributes["perm"].as_ints())
        array = codes.const_value.numpy().transpose(order)
        codes.const_value = onnx_ir.Tensor(array.copy(), name=codes.name)
        codes.shape = onnx_ir.Shape(array.shape)
        if "axis" in source.attributes and source.inputs[1].shape and len(source.inputs[1].shape):
            axis = order.index(source.attributes["axis"].as_int() % array.ndim)
            source.attributes["axis"] = onnx_ir.AttrInt64("axis", axis)
        source.outputs[0].shape = onnx_ir.Shape(array.shape)
        node.outputs[0].replace_all_uses_with(source.outputs[0])
        graph.remove(node, safe=True)


def share_factors(graph: Any) -> None:
    """Lets products of the same value with equal constants read one constant, so that they become one."""
    first: dict[Any, Any] = {}
    for node in graph:
        for place, factor in enumerate(node.inputs if node.op_type == "Mul" else ()):
            if factor is None or factor.const_value is None or not factor.is_initializer():
                continue
            array = factor.const_value.numpy()
            if array.nbytes > SMALL:
                continue
            other = node.inputs[1 - place]
            key = (id(other), place, array.dtype.str, array.shape, array.tobytes())
            node.replace_input_with(place, first.setdefault(key, factor))


def rename(model: Any) -> None:
    """Names codes ``conv1.weight``, their grid ``conv1.weight.scale`` and ``.zero_point``."""
    held = model.graph.initializers
    for name, value in list(held.items()):
        found = PARAMETRIZED.fullmatch(name)
        if not found:
            continue
        path, tensor, detail = found.groups()
        wanted = f"{path}{tensor}.{detail}" if detail else f"{path}{tensor}"
        if wanted not in held:
            del held[name]
            value.name = wanted
            held[wanted] = value
