# SPDX-License-Identifier: Apache-2.0
"""Files for LiteRT: int8 throughout, within a step of the integer reference, and what can't be is listed."""

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import FileError, ModelError
from rarefy.export.litert import litert_content, save_litert
from rarefy.export.litert_runner import LiteRt
from rarefy.export.onnx import export_onnx
from rarefy.export.reference import IntegerReference
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task


class Net(nn.Module):
    """Convolutions of all kinds, what a case does with them, and linear heads."""

    def __init__(self, how: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.g, self.c = nn.Conv2d(8, 8, 3, groups=2, dilation=2), nn.Conv2d(16, 6, 1, bias=False)
        self.fc, self.flat, self.how = nn.Linear(8, 5), nn.Linear(8 * 4 * 4, 5), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def head(net: Net, x: Tensor) -> Tensor:
    return net.fc(x.mean((2, 3)))


def sums(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return head(net, (F.leaky_relu(y, 0.1) + y.relu()) * y.relu())


def joined(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.c(torch.cat([net.b(y), F.max_pool2d(F.pad(y, (0, 1, 0, 1)), 2)], 1))


CASES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "depthwise": lambda net, x: head(net, F.relu6(net.b(net.a(x)))),
    "padding": lambda net, x: head(net, net.b(F.pad(net.a(x).relu(), (0, 1, 0, 1)))),
    "groups": lambda net, x: net.g(net.a(x).relu()),
    "sums": sums,
    "joined": joined,
    "float": lambda net, x: head(net, net.a(x).relu().cumsum(1)),
    "cut": lambda net, x: net.flat(
        F.pad(net.a(x)[:, 2:, ::2, 1:8:2], (0, 0, 0, 0, 1, 1))[:, :, 1:].flatten(1)
    ),
    "averaged": lambda net, x: head(net, F.avg_pool2d(net.a(x), 2)),
    "flattened": lambda net, x: net.flat(F.max_pool2d(net.a(x).relu(), 2).flatten(1)),
    "pooled": lambda net, x: head(net, F.max_pool2d(net.a(x), 3, 2, 1)),
    "global": lambda net, x: net.fc(F.adaptive_avg_pool2d(net.a(x), 1).flatten(1)).relu(),
}
WRITTEN = tuple(name for name in CASES if name != "float")


@lru_cache
def program(name: str) -> tuple[Any, Tensor, nn.Module]:
    """The QDQ file of a case, inputs, and the network."""
    torch.manual_seed(0)
    model, x = Net(CASES[name]).eval(), torch.randn(16, 3, 9, 9)
    task = Task("noise", x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), runtime="litert")
    model = StaticInt8().apply(model, context)
    return export_onnx(model, x[:1]), x, model


@pytest.mark.parametrize("name", WRITTEN)
def test_codes_are_within_one_of_the_reference(name: str) -> None:
    proto, x, _ = program(name)
    names = [n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    mine = IntegerReference(proto).probe(names)(x)[1:]
    runner = LiteRt(proto, threads=1)
    theirs = runner.probe(names)(x)[1:]
    for ours, other in zip(mine, theirs, strict=True):
        difference = (ours.long() - other.long()).abs()
        assert float((difference <= 1).float().mean()) >= 0.99
        assert int(difference.max()) <= 2
    assert runner.precision == "int8"
    assert kinds(litert_content(proto)) == {"FLOAT32": 2, "INT8": 0, "INT32": 0}


def kinds(content: bytes) -> dict[str, int]:
    """How many results of operators and inputs a file has of each type, int8 and constants not counted."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    types = {getattr(schema.TensorType, kind): kind for kind in ("FLOAT32", "INT8", "INT32")}
    found = dict.fromkeys(types.values(), 0)
    for tensor in model.subgraphs[0].tensors:
        constant = model.buffers[tensor.buffer].data is not None
        if types[tensor.type] == "FLOAT32" or (types[tensor.type] == "INT32" and not constant):
            found[types[tensor.type]] += 1
    return found


def test_answers_come_in_the_shape_of_the_network_and_any_batch() -> None:
    proto, x, model = program("joined")
    runner = LiteRt(proto, threads=1)
    for part in (x[:1], x[:5], x):
        with torch.no_grad():
            exact = model(part)
        found = runner(part)
        assert found.shape == exact.shape
        assert float((found - exact).abs().max()) <= 0.03 * float(exact.abs().max())


def test_a_saved_file_is_opened_and_is_a_quarter_of_the_floats(tmp_path: Path) -> None:
    proto, x, model = program("flattened")
    path = tmp_path / "net.tflite"
    size = save_litert(proto, path)
    assert path.read_bytes()[4:8] == b"TFL3"
    assert size == path.stat().st_size == len(litert_content(proto))
    assert torch.equal(LiteRt(path, threads=1)(x), LiteRt(proto, threads=1)(x))
    assert [p.name for p in tmp_path.iterdir()] == ["net.tflite"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="is no file that LiteRT can run"):
        LiteRt(path)
    with pytest.raises(FileError, match="can't be read"):
        LiteRt(tmp_path / "none.tflite")


def test_operators_that_cant_be_written_are_listed(tmp_path: Path) -> None:
    proto, _, _ = program("float")
    with pytest.raises(
        ModelError, match=r"CumSum '.*': LiteRT's int8 operators .* have none for it"
    ):
        save_litert(proto, tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_placed_for_another_runtime_is_refused() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        torch.randn(2, 3, 8, 8),
    )
    task = Task("noise", x, calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), runtime="onnxruntime")
    proto = export_onnx(StaticInt8().apply(model.eval(), context), x)
    with pytest.raises(ModelError, match="activations are int8 with one scale there"):
        litert_content(proto)
