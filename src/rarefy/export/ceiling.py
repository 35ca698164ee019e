# SPDX-License-Identifier: Apache-2.0
"""What a runtime reaches on this machine at best: the speed of large matrix products and convolutions."""

from functools import cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from rarefy.export.lint import lint

if TYPE_CHECKING:
    from onnx import ModelProto

SIZES = (256, 512)
PIXELS = (32, 32)


@cache
def ceilings(runtime: str, threads: int) -> dict[str, float]:
    """Billions of multiply-accumulates in a second, for "int8" and "float32"; empty if it does not tell.

    Both are the best of several products of square matrices and convolutions of one pixel, timed as `lint`
    times all products: what surrounds them does not count.

    Args:
        runtime: as in `lint`.
        threads: of its session.
    """
    found: dict[str, float] = {}
    for integer, operator, size in product((True, False), ("MatMul", "Conv"), SIZES):
        program, shape = single(operator, size, integer)
        x = torch.linspace(-1, 1, prod(shape)).reshape(shape)
        timed = lint(program, runtime, threads, x)[0]
        arithmetic = "int8" if integer else "float32"
        if timed.macs and timed.microseconds and timed.integer == integer:
            speed = timed.macs / timed.microseconds / 1e3
            found[arithmetic] = max(speed, found.get(arithmetic, 0.0))
    return found


def single(operator: str, size: int, integer: bool) -> "tuple[ModelProto, list[int]]":
    """A file of one operator with a square weight, and its input's shape; of integers, with quantisers."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [1, 1] if operator == "Conv" else []
    shape = [1, size, *PIXELS] if operator == "Conv" else [size, size]
    codes = (np.arange(size * size) * 7919 % 127 - 63).astype(np.int8).reshape(size, size, *ends)
    constants = {
        "scale": np.float32(1 / 64), "middle": np.uint8(128), "none": np.int8(0),
        "weight": codes if integer else codes.astype(np.float32) / 64,
    }  # fmt: skip
    nodes = [helper.make_node(operator, ["x", "weight"], ["y"])]
    if integer:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "middle"], ["a"]),
            helper.make_node("DequantizeLinear", ["a", "scale", "middle"], ["b"]),
            helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["w"]),
            helper.make_node(operator, ["b", "w"], ["c"]),
            helper.make_node("QuantizeLinear", ["c", "scale", "middle"], ["d"]),
            helper.make_node("DequantizeLinear", ["d", "scale", "middle"], ["y"]),
        ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y"))
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "single", [x], [y], held)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8), shape
