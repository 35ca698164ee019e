# SPDX-License-Identifier: Apache-2.0
"""OpenVINO as a runtime: the same calls and answers, floats in float32, errors that say what is wrong."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from rarefy.errors import FileError, ModelError, RarefyError
from rarefy.export.onnx import export_onnx
from rarefy.export.openvino import OpenVino
from rarefy.export.parity import check_parity
from rarefy.export.runtimes import check_runtime, open_program

X = torch.arange(15.0).view(5, 3)


def program(batch: int | str = "batch", operator: str = "Mul") -> ModelProto:
    """y = 2 x + 1 on (batch, 3), with the value ``double`` between."""
    two, one = (
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in (("two", 2.0), ("one", 1.0))
    )
    nodes = [
        helper.make_node(operator, ["x", "two"], ["double"]),
        helper.make_node("Add", ["double", "one"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "affine", ends[:1], ends[1:], [two, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_it_is_called_like_any_runtime(tmp_path: Path) -> None:
    path = tmp_path / "affine.onnx"
    onnx.save(program(), str(path))
    for source in (program(), program().SerializeToString(), path, str(path)):
        runtime = open_program(source, "openvino", threads=1)
        for answer in (runtime(X), runtime((X,)), runtime({"x": X}), runtime(x=X)):
            assert torch.equal(answer, 2 * X + 1)
        assert runtime.precision == "float32"
        assert (runtime.name, runtime.threads) == ("openvino", 1)
    assert torch.equal(OpenVino(program(2))(X), 2 * X + 1)
    assert torch.equal(OpenVino(program()).probe(["double"])(X)[1], 2 * X)


def test_results_are_not_overwritten_by_the_next_call() -> None:
    runtime = OpenVino(program())
    first = runtime(X)
    runtime(X + 1)
    assert torch.equal(first, 2 * X + 1)


def test_floats_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)), torch.randn(4, 256)
    parity = check_parity(model, OpenVino(export_onnx(model, x)), [x], tolerance=1e-5)
    assert parity.passed, parity
    assert parity.runtime == "openvino"


def test_sizes_can_be_fixed() -> None:
    open_sizes = OpenVino(program(), threads=1)
    runtime = open_sizes.fixed(X[:2])
    assert (open_sizes.batch, runtime.batch, runtime.threads) == (None, 2, 1)
    assert runtime.inputs["x"].shape == (2, 3)
    for batch in (X[:2], X, X[:1]):
        assert torch.equal(runtime(batch), 2 * batch + 1)
    assert runtime.probe(["double"]).batch == 2
    assert runtime.fixed(X) is runtime
    with pytest.raises(ModelError, match="OpenVINO can't run the program"):
        OpenVino(export_onnx(nn.Linear(3, 2), X)).fixed(torch.ones(2, 4))
    elsewhere = open_program(program(), "onnxruntime")
    assert elsewhere.fixed(X) is elsewhere


def test_what_it_cannot_open_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file 'nowhere.onnx'"):
        OpenVino("nowhere.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    with pytest.raises(FileError, match="is no ONNX file that OpenVINO reads"):
        OpenVino(broken)
    with pytest.raises(ModelError, match="OpenVINO can't run the program"):
        OpenVino(program(operator="Nonsense"))
    with pytest.raises(ModelError, match="input 'x' is missing|takes the inputs x"):
        OpenVino(program())(wrong=X)


def test_runtimes_have_names() -> None:
    check_runtime("openvino")
    with pytest.raises(RarefyError, match="there is no runtime 'openvin'; .*openvino"):
        check_runtime("openvin")
