# SPDX-License-Identifier: Apache-2.0
"""The runtime as a callable: any of our inputs, any batch, errors that say what is wrong."""

from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rarefy.errors import FileError, ModelError
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.overflow import could_saturate
from rarefy.export.session import sentence
from rarefy.export.threads import default_threads


def program(
    batch: int | str = "batch", kind: int = TensorProto.FLOAT, opset: int = 20
) -> ModelProto:
    """y = 2 x + 1 on (batch, 3), with the value ``double`` between."""
    two, one = (
        helper.make_tensor(name, kind, [], [value]) for name, value in (("two", 2), ("one", 1))
    )
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["double"]),
        helper.make_node("Add", ["double", "one"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, kind, [batch, 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "affine", ends[:1], ends[1:], [two, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


X = torch.arange(15.0).view(5, 3)


def test_tensors_tuples_mappings_and_keywords_are_understood() -> None:
    runtime = OnnxRuntime(program())
    for answer in (runtime(X), runtime((X,)), runtime({"x": X}), runtime(x=X)):
        assert isinstance(answer, torch.Tensor)
        assert torch.equal(answer, 2 * X + 1)


def test_a_path_and_bytes_are_as_good_as_a_model(tmp_path: Path) -> None:
    path = tmp_path / "affine.onnx"
    onnx.save(program(), str(path))
    for source in (path, str(path), path.read_bytes()):
        assert torch.equal(OnnxRuntime(source)(X), 2 * X + 1)


@settings(deadline=None, max_examples=25)
@given(fixed=st.integers(1, 5), size=st.integers(1, 12))
def test_a_fixed_batch_size_takes_any_batch(fixed: int, size: int) -> None:
    x = torch.arange(3.0 * size).view(size, 3)
    assert torch.equal(OnnxRuntime(program(fixed))(x), 2 * x + 1)


@pytest.mark.parametrize(
    ("given_type", "declared"),
    [
        (torch.float64, TensorProto.FLOAT),
        (torch.float16, TensorProto.FLOAT),
        (torch.int64, TensorProto.FLOAT),
        (torch.uint8, TensorProto.FLOAT),
        (torch.int32, TensorProto.INT64),
        (torch.float32, TensorProto.DOUBLE),
    ],
)
def test_inputs_are_cast_to_the_declared_type(given_type: torch.dtype, declared: int) -> None:
    answer = OnnxRuntime(program(kind=declared))(X.to(given_type))
    assert torch.equal(answer.double(), (2 * X + 1).double())


def test_floats_are_not_cut_to_integers() -> None:
    with pytest.raises(ModelError, match="input 'x' is float32, but the program takes int64"):
        OnnxRuntime(program(kind=TensorProto.INT64))(X)


def test_missing_unknown_and_misshapen_inputs_are_named() -> None:
    runtime = OnnxRuntime(program())
    with pytest.raises(ModelError, match="takes the inputs x; it was given z"):
        runtime(z=X)
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\); it was given 2"):
        runtime(X, X)
    with pytest.raises(ModelError, match="Got: 4 Expected: 3"):
        runtime(torch.zeros(5, 4))


def test_intermediate_values_come_after_the_outputs() -> None:
    source = program()
    runtime = OnnxRuntime(source, outputs=["double"])
    answer, double = runtime(X)
    assert torch.equal(double, 2 * X)
    assert torch.equal(answer, 2 * X + 1)
    assert runtime.output_names == ["y", "double"]
    assert len(source.graph.output) == 1
    with pytest.raises(ModelError, match="no node of the program computes 'triple'"):
        OnnxRuntime(source, outputs=["triple"])


def test_threads_are_stated() -> None:
    assert OnnxRuntime(program(), threads=1).threads == 1
    assert OnnxRuntime(program()).threads == default_threads()


def test_node_counts_and_precision_of_a_float_program() -> None:
    runtime = OnnxRuntime(program())
    assert runtime.node_counts() == {"Mul": 1, "Add": 1}
    assert runtime.precision == "float32"
    assert runtime.optimised_graph().graph.input[0].name == "x"


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    whole = program().SerializeToString()
    path = tmp_path / "broken.onnx"
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"a text\n" * 9}[damage]
    )
    for source in (path, path.read_bytes()):
        with pytest.raises(FileError, match="no ONNX file"):
            OnnxRuntime(source)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileError, match=r"there is no file 'nowhere\.onnx'"):
        OnnxRuntime("nowhere.onnx")


def test_a_later_version_of_the_standard_is_refused() -> None:
    with pytest.raises(ModelError, match=r"later version than ONNX Runtime [\d.]+ reads"):
        OnnxRuntime(program(opset=99))
    later = program()
    later.ir_version = 99
    with pytest.raises(ModelError, match="later version"):
        OnnxRuntime(later)


def test_an_unknown_operator_is_named() -> None:
    for change in ({"op_type": "Nonsense"}, {"domain": "nobody.knows"}):
        source = program()
        for name, value in change.items():
            setattr(source.graph.node[0], name, value)
        with pytest.raises(ModelError, match=f"does not know.*{value}"):
            OnnxRuntime(source)


def quantised_weight(largest: int) -> ModelProto:
    """A model that only holds int8 codes up to `largest` behind DequantizeLinear."""
    import numpy as np

    codes = numpy_helper.from_array(np.array([[largest, -3]], dtype=np.int8), "w")
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [], [], [codes]))


def test_only_large_int8_weights_can_saturate() -> None:
    assert could_saturate(quantised_weight(65))
    assert could_saturate(quantised_weight(-128))
    assert not could_saturate(quantised_weight(64))
    assert not could_saturate(program())
    assert not could_saturate(b"no model")
    # 2 * 255 * 64 still fits into 16 bits, 2 * 255 * 65 does not
    assert 2 * 255 * 64 <= 32_767 < 2 * 255 * 65


def test_complaints_lose_prefixes_and_source_lines() -> None:
    raw = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/core/model.cc:256 ns::Model(int, bool) "
        "Unsupported\nversion"
    )
    assert sentence(raw) == "Unsupported version"
