# SPDX-License-Identifier: Apache-2.0
"""ONNX models: the same message again, whatever they hold and wherever their tensors stand."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rarefy.errors import FileError
from rarefy.store import pack as pack_page
from rarefy.store.onnx_tensors import tensor_protos
from rarefy.store.pack import load_onnx, load_tensors, pack, strip_onnx, unpack
from rarefy.store.rfy import read, write

from .arrays import weights


def model_of(nodes: list[Any], initializers: list[Any], **more: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
        **more,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def plain_model() -> onnx.ModelProto:
    """Two layers, one weight in raw bytes, one bias in typed fields, a large constant."""
    constant = numpy_helper.from_array(weights((300, 300), 0.1, 9), "c")
    nodes = [
        helper.make_node("Constant", [], ["c"], name="const", value=constant),
        helper.make_node("MatMul", ["x", "c"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "b"], ["y"], alpha=1.0),
    ]
    weight = numpy_helper.from_array(weights((300, 20), 1, 0), "w")
    bias = helper.make_tensor("b", TensorProto.FLOAT, [20], list(range(20)))
    return model_of(nodes, [weight, bias])


def every_type() -> list[onnx.TensorProto]:
    """Initializers of every data type, raw and typed, scalar and empty."""
    found = []
    rng = np.random.default_rng(0)
    for name, number in TensorProto.DataType.items():
        if name in ("UNDEFINED", "STRING"):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(number)
        values = rng.integers(0, 2, (3, 5)).astype(np.float32).astype(dtype)
        found.append(numpy_helper.from_array(values, f"raw.{name}"))
        found.append(helper.make_tensor(f"typed.{name}", number, [3, 5], values.reshape(-1)))
        found.append(numpy_helper.from_array(values[0, 0], f"scalar.{name}"))
        found.append(helper.make_tensor(f"empty.{name}", number, [0, 4], b"", raw=True))
    found.append(helper.make_tensor("string", TensorProto.STRING, [2], [b"one", b"two"]))
    return found


def check_round_trip(model: onnx.ModelProto, folder: Path, **save: Any) -> Path:
    """Pack and unpack; the same message comes out, on disk and in memory."""
    onnx.save(model, folder / "a.onnx", **save)
    size = pack(folder / "a.onnx", folder / "a.rfy")
    assert size == (folder / "a.rfy").stat().st_size
    expected = onnx.load(folder / "a.onnx").SerializeToString(deterministic=True)
    unpack(folder / "a.rfy", folder / "b.onnx")
    assert (folder / "b.onnx").read_bytes() == expected
    assert load_onnx(folder / "a.rfy").SerializeToString(deterministic=True) == expected
    return folder / "a.rfy"


def test_a_model_comes_back_and_its_weights_left_the_graph(tmp_path: Path) -> None:
    model = plain_model()
    path = check_round_trip(model, tmp_path)
    with read(path) as archive:
        assert list(archive) == ["w", "b", "const.value"]
        assert len(archive.program) < 400
        assert archive.kind == "onnx"
    tensors = load_tensors(path)
    for proto in model.graph.initializer:
        assert np.array_equal(tensors[proto.name], numpy_helper.to_array(proto))
    assert path.stat().st_size < 0.4 * len(model.SerializeToString())


def test_every_data_type_comes_back(tmp_path: Path) -> None:
    path = check_round_trip(model_of([], every_type()), tmp_path)
    tensors = load_tensors(path)
    assert tensors["raw.BFLOAT16"].dtype.name == "bfloat16"
    assert tensors["raw.INT4"].dtype.name == "int4"
    assert tensors["typed.FLOAT8E4M3FN"].dtype.name == "float8_e4m3fn"
    assert {name.split(".")[1] for name in tensors if name.startswith("typed")} >= {
        "FLOAT",
        "INT64",
    }


def test_sub_graphs_functions_and_sparse_tensors_come_back(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights((1, 300), 1, 0), "w")],
    )
    branch = helper.make_node("If", ["cond"], ["y"], then_branch=inner, else_branch=inner)
    values = numpy_helper.from_array(np.arange(9, dtype=np.float32), "sparse")
    indices = numpy_helper.from_array(np.arange(9, dtype=np.int64), "at")
    model = model_of(
        [branch],
        [numpy_helper.from_array(np.array(True), "cond"), numpy_helper.from_array(np.eye(3), "w")],
        sparse_initializer=[helper.make_sparse_tensor(values, indices, [300])],
    )
    listed = helper.make_node("Constant", [], ["f"], value=numpy_helper.from_array(np.eye(40), "k"))
    model.functions.append(
        helper.make_function("own", "f", [], ["f"], [listed], [helper.make_opsetid("", 21)])
    )
    path = check_round_trip(model, tmp_path)
    assert list(load_tensors(path)) == [
        "cond", "w", "sparse", "sparse.indices", "w#2", "w#3", "f.value",
    ]  # fmt: skip


def test_unusual_data_stay_in_the_graph_untouched(tmp_path: Path) -> None:
    odd = numpy_helper.from_array(np.arange(3, dtype=np.float32), "odd")
    odd.raw_data += b"tail"
    both = numpy_helper.from_array(np.arange(300, dtype=np.float32), "both")
    both.float_data.extend([1, 2])
    nibble = helper.make_tensor("nibble", TensorProto.UINT4, [3], b"\x21\xf3", raw=True)
    noisy = helper.make_tensor("noisy", TensorProto.FLOAT, [2], [1.0, float("nan")])
    check_round_trip(model_of([], [odd, both, nibble, noisy]), tmp_path)


def test_weights_in_other_files_are_followed(tmp_path: Path) -> None:
    save = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    model = plain_model()
    expected = {p.name: numpy_helper.to_array(p) for p in model.graph.initializer}
    path = check_round_trip(model, tmp_path, **save)
    for name, array in load_tensors(path).items():
        if name in expected:
            assert np.array_equal(array, expected[name])


def test_a_model_beyond_protobuf_comes_in_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = check_round_trip(plain_model(), tmp_path)
    monkeypatch.setattr(pack_page, "_PROTOBUF_LIMIT", 1000)
    (tmp_path / "large").mkdir()
    unpack(path, tmp_path / "large" / "c.onnx")
    names = sorted(p.name for p in (tmp_path / "large").iterdir())
    assert names == ["c.onnx", "c.onnx.data"]
    loaded = onnx.load(tmp_path / "large" / "c.onnx")
    for _, proto, _ in tensor_protos(loaded):
        proto.ClearField("data_location")  # set by whatever loads weights from a second file
    expected = load_onnx(path).SerializeToString(deterministic=True)
    assert loaded.SerializeToString(deterministic=True) == expected


class Net(nn.Module):
    """Convolution, normalisation, pooling and a linear layer: what exporters meet every day."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as PyTorch exports it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    torch.onnx.export(Net().eval(), (torch.zeros(1, 3, 16, 16),), path, dynamo=True, verbose=False)
    return path


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


def test_an_exported_network_runs_the_same(exported: Path, tmp_path: Path) -> None:
    pack(exported, tmp_path / "a.rfy")
    assert np.array_equal(run(load_onnx(tmp_path / "a.rfy")), run(onnx.load(exported)))


@pytest.mark.parametrize("node_names", [False, True])
def test_stripping_changes_size_and_nothing_else(
    exported: Path, tmp_path: Path, node_names: bool
) -> None:
    model = onnx.load(exported)
    before = run(model)
    names = [i.name for g in (model.graph.input, model.graph.output) for i in g]
    full = pack(exported, tmp_path / "full.rfy")
    strip_onnx(model, node_names=node_names)
    onnx.save(model, tmp_path / "a.onnx")
    assert pack(tmp_path / "a.onnx", tmp_path / "a.rfy") < 0.7 * full
    again = load_onnx(tmp_path / "a.rfy")
    assert np.array_equal(run(again), before)
    assert [i.name for g in (again.graph.input, again.graph.output) for i in g] == names
    assert any(node.name for node in again.graph.node) != node_names
    assert not again.graph.value_info
    assert not any(node.metadata_props for node in again.graph.node)


def test_files_that_can_not_be_packed_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff\xff garbage")
    for name in ("a.onnx", "absent.onnx"):
        with pytest.raises(FileError, match=f"{name} is no readable ONNX file"):
            pack(tmp_path / name, tmp_path / "a.rfy")
    with pytest.raises(FileError, match=r"ends in neither .onnx nor .safetensors"):
        pack(tmp_path / "a.pt", tmp_path / "a.rfy")
    hollow = plain_model()
    hollow.graph.initializer[0].ClearField("raw_data")
    onnx.save(hollow, tmp_path / "b.onnx")
    with pytest.raises(FileError, match="tensor 'w' has no data"):
        pack(tmp_path / "b.onnx", tmp_path / "a.rfy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_file_cut_anywhere_is_told(tmp_path: Path) -> None:
    whole = plain_model().SerializeToString()
    path = tmp_path / "a.onnx"
    for size in (*range(0, len(whole), 20_011), *range(len(whole) - 12, len(whole))):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"a\.onnx is no readable ONNX file"):
            pack(path, tmp_path / "a.rfy")
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.rfy"
    write(path, {"x": np.zeros(3)})
    with pytest.raises(FileError, match="holds tensors, not an ONNX model"):
        load_onnx(path)
    write(path, {"x": np.zeros(3)}, program=b"\xff\xff", kind="onnx")
    with pytest.raises(FileError, match="no readable ONNX graph"):
        unpack(path, tmp_path / "out")
    check_round_trip(plain_model(), tmp_path)
    with read(path) as archive:
        program, tensors = archive.program, dict(archive)
    for wrong, sentence in (
        ({"w": tensors["w"]}, "no data for tensor 'b'"),
        ({**tensors, "more": tensors["b"]}, "more tensors than its graph"),
        ({**tensors, "w": tensors["w"].T}, "no data for tensor 'w'"),
        ({**tensors, "w": tensors["w"].astype(np.float16)}, "'w' is float16 where"),
    ):
        write(path, wrong, program=program, kind="onnx")
        with pytest.raises(FileError, match=sentence):
            load_onnx(path)
