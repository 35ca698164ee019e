# SPDX-License-Identifier: Apache-2.0
"""Walking the fields of a message gives what the library gives, byte for byte, and loads no weight."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from rarefy.errors import FileError
from rarefy.store.onnx_arrays import initializer_arrays
from rarefy.store.onnx_file import LEAST, Data, read_model, without_data, write_model


def model_of(arrays: list[Any], producer: str = "", opset: int = 20) -> onnx.ModelProto:
    """A model with these initialisers and fields on both sides of them."""
    tensors = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"], name="only")
    graph = helper.make_graph([node], "network", ends[:1], ends[1:], tensors, doc_string="told")
    return helper.make_model(
        graph, producer_name=producer, opset_imports=[helper.make_opsetid("", opset)]
    )


ARRAYS = st.lists(
    st.builds(
        lambda size, kind, seed: np.random.default_rng(seed).integers(0, 9, size).astype(kind),
        st.integers(0, 3000),
        st.sampled_from(["float32", "float64", "int8", "float16", "int64"]),
        st.integers(0, 99),
    ),
    max_size=5,
)


@given(ARRAYS, st.text(max_size=300), st.integers(1, 2000))
@settings(deadline=None, max_examples=60)
def test_what_is_left_out_is_put_back(arrays: list[Any], producer: str, opset: int) -> None:
    whole = model_of(arrays, producer, opset).SerializeToString(deterministic=True)
    text, data = without_data(np.frombuffer(whole, dtype=np.uint8))
    assert set(data) == {i for i, a in enumerate(arrays) if a.nbytes >= LEAST}
    assert len(text) < len(whole) - sum(d.size for d in data.values()) + 1
    model = onnx.ModelProto.FromString(text)
    for place, found in data.items():
        assert np.asarray(found.load()).tobytes() == arrays[place].tobytes()
        model.graph.initializer[place].ClearField("raw_data")
    file = io.BytesIO()
    write_model(file, model, data)
    assert file.getvalue() == whole


def test_data_are_written_in_row_major_order_whatever_lies_in_memory() -> None:
    array = np.arange(12_000, dtype=np.float32).reshape(100, 120)
    model = model_of([np.ascontiguousarray(array.T)])
    whole = model.SerializeToString(deterministic=True)
    model.graph.initializer[0].ClearField("raw_data")
    file = io.BytesIO()
    write_model(file, model, {0: Data(array.nbytes, lambda: array.T)})
    assert file.getvalue() == whole


def test_a_graph_in_two_parts_is_left_to_the_library(tmp_path: Path) -> None:
    first, second = (model_of([np.full(2000, x, np.float32)]) for x in (1.0, 2.0))
    twice = first.SerializeToString() + second.SerializeToString()
    (tmp_path / "a.onnx").write_bytes(twice)
    model, data = read_model(tmp_path / "a.onnx")
    assert not data
    assert model == onnx.ModelProto.FromString(twice)


@given(st.integers(0, 12_100), st.integers(0, 255))
@settings(deadline=None, max_examples=80)
def test_damage_gives_an_error_or_what_the_library_reads(place: int, octet: int) -> None:
    whole = bytearray(model_of([np.arange(3000, dtype=np.float32)]).SerializeToString())
    whole[min(place, len(whole) - 1)] = octet
    found = read(bytes(whole))
    assert found is None or found == onnx.ModelProto.FromString(bytes(whole))


def read(content: bytes) -> onnx.ModelProto | None:
    """The model with all its data, or None if it is refused."""
    try:
        text, data = without_data(np.frombuffer(content, dtype=np.uint8))
        model = onnx.ModelProto.FromString(text)
    except (FileError, DecodeError):
        return None
    for place, found in data.items():
        model.graph.initializer[place].raw_data = found.load().tobytes()
    return model


def test_arrays_come_one_by_one_whatever_holds_them(tmp_path: Path) -> None:
    arrays = [np.arange(5000, dtype=np.int8), np.float32([1.5]), np.arange(9000.0)]
    model = model_of(arrays)
    onnx.save(model, tmp_path / "a.onnx")
    for program in (model, tmp_path / "a.onnx", str(tmp_path / "a.onnx")):
        graph, found = initializer_arrays(program)
        pairs = dict(found)
        assert graph.node[0].name == "only"
        assert list(pairs) == ["w0", "w1", "w2"]
        assert all(np.array_equal(a, b) for a, b in zip(arrays, pairs.values(), strict=True))


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x3a\x05\x00"])
def test_what_is_no_model_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.onnx is no readable ONNX file"):
        read_model(tmp_path / "a.onnx")
