# SPDX-License-Identifier: Apache-2.0
"""Every operator of an imported ONNX file gives what ONNX Runtime gives."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from rarefy.zoo.models import load_model

DRAW = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


X, IMAGE, ROW = floats(3, 4, 5), floats(2, 4, 9, 8), floats(2, 6)

# operator, inputs (the first is fed, the others are stored), attributes
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *[(name, [X], {}) for name in (
        "Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Floor", "Ceil", "Round",
        "Sign", "Softplus", "Softsign", "HardSwish", "HardSigmoid", "Mish", "Gelu", "LeakyRelu", "Elu",
        "Celu", "Selu", "Softmax", "LogSoftmax", "Identity", "Flatten", "Transpose", "ReduceMean",
        "ReduceMax", "ReduceL2", "IsNaN",
    )],
    *[(name, [X, floats(5)], {}) for name in (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "LessOrEqual", "PRelu",
    )],
    ("Pow", [np.abs(X), np.float32(2.5)], {}),
    ("Sqrt", [np.abs(X)], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.5}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.7)], {}),
    ("Clip", [X * 5, np.float32(0), np.float32(6)], {}),
    ("Softmax", [X], {"axis": 1}),
    ("ReduceSum", [X, ints(0, -1)], {"keepdims": 0}),
    ("ReduceMean", [X, ints(1)], {}),
    ("ReduceProd", [X, ints(0, 2)], {}),
    ("ArgMax", [X], {"axis": 1, "keepdims": 0}),
    ("CumSum", [X, np.int64(1)], {}),
    ("Cast", [X], {"to": TensorProto.INT64}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Squeeze", [X[:1], ints(0)], {}),
    ("Unsqueeze", [X, ints(0, 4)], {}),
    ("Slice", [X, ints(1, 0), ints(2**62, -1), ints(0, 2), ints(1, 2)], {}),
    ("Slice", [X, ints(-1), ints(-(2**62)), ints(2), ints(-2)], {}),
    ("Slice", [X, ints(3), ints(0), ints(2), ints(-1)], {}),
    ("Gather", [X, ints(2, -1)], {"axis": 1}),
    ("Gather", [X, np.int64(-1)], {"axis": 2}),
    ("GatherElements", [X, ints([[1]], [[0]], [[1]])], {"axis": 1}),
    ("GatherND", [X, ints([0, 1], [2, 3])], {}),
    ("ScatterND", [X, ints([0, 1], [2, -1]), floats(2, 5)], {}),
    ("ScatterND", [X, ints([[0, 1, 2]], [[0, 1, 2]]), floats(2, 1)], {"reduction": "add"}),
    ("Expand", [X, ints(2, 1, 4, 1)], {}),
    ("Tile", [X, ints(1, 2, 1)], {}),
    ("Trilu", [X], {"upper": 0}),
    ("Pad", [IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 3), np.float32(1.5)], {}),
    ("Pad", [IMAGE, ints(0, 0, 1, 2, 0, 0, 2, 3)], {"mode": "reflect"}),
    ("Pad", [IMAGE, ints(1, 2), np.float32(0), ints(3)], {}),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}),
    ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "ceil_mode": 1}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("GlobalMaxPool", [IMAGE], {}),
    ("Resize", [IMAGE, None, floats(0), ints(2, 4, 18, 16)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", [IMAGE, None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    ("Conv", [IMAGE, floats(6, 2, 3, 3), floats(6)], {"group": 2, "pads": [1, 1, 1, 1]}),
    ("Conv", [IMAGE, floats(6, 4, 3, 2)], {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    ("Conv", [IMAGE, floats(6, 4, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [IMAGE[..., 0], floats(6, 4, 3)], {"strides": [2]}),
    ("ConvTranspose", [IMAGE, floats(4, 3, 3, 3), floats(3)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", [IMAGE, floats(4, 3, 2, 2)], {"strides": [2, 2], "auto_pad": "NOTSET"}),
    ("ConvTranspose", [IMAGE, floats(4, 3, 3, 4), floats(3)], {"strides": [2, 2], "pads": [0, 2, 1, 1]}),
    ("ConvTranspose", [IMAGE, floats(4, 3, 3, 4)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", [IMAGE, floats(4, 3, 4, 3)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", [IMAGE[..., 0], floats(4, 3, 2)], {"strides": [3], "auto_pad": "VALID"}),
    ("Gemm", [ROW, floats(6, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", [ROW, floats(5, 6)], {"transB": 1}),
    ("MatMul", [X, floats(5, 7)], {}),
    ("MatMul", [X, floats(3, 5, 2)], {}),
    ("BatchNormalization", [IMAGE, floats(4), floats(4), floats(4), np.abs(floats(4))], {}),
    ("LayerNormalization", [X, floats(5), floats(5)], {"epsilon": 1e-3}),
    ("InstanceNormalization", [IMAGE, floats(4), floats(4)], {}),
    ("LSTM", [X, floats(2, 24, 5), floats(2, 24, 6), floats(2, 48)],
     {"hidden_size": 6, "direction": "bidirectional"}),
    ("LSTM", [X, floats(1, 24, 5), floats(1, 24, 6)],
     {"hidden_size": 6, "activations": ["Sigmoid", "Tanh", "Tanh"]}),
    ("GRU", [X, floats(1, 18, 5), floats(1, 18, 6), floats(1, 36)],
     {"hidden_size": 6, "linear_before_reset": 1}),
]  # fmt: skip


def write(path: Path, operator: str, given: list[Any], how: dict[str, Any]) -> Path:
    """A file with one node."""
    names = ["x", *(f"c{i}" if v is not None else "" for i, v in enumerate(given[1:]))]
    held = [
        numpy_helper.from_array(np.asarray(v), n)
        for n, v in zip(names[1:], given[1:], strict=True)
        if v is not None
    ]
    node = helper.make_node(operator, names, ["y"], name="it", **how)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, given[0].shape)
    graph = helper.make_graph([node], "g", [x], [helper.make_empty_tensor_value_info("y")], held)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("operator", "given", "how"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_an_operator(operator: str, given: list[Any], how: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "one.onnx", operator, given, how)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"x": given[0]})[0]
    with torch.no_grad():
        ours = load_model(str(path))(torch.from_numpy(given[0]))
    assert ours.shape == theirs.shape
    assert np.allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("operator", "given", "how"), CASES)
def test_an_operator_can_be_traced(
    operator: str, given: list[Any], how: dict[str, Any], tmp_path: Path
) -> None:
    network = load_model(str(write(tmp_path / "one.onnx", operator, given, how)))
    x = torch.from_numpy(given[0])
    with torch.no_grad():
        traced = torch.export.export(network, (x,)).module()
        assert torch.equal(traced(x), network(x))
