# SPDX-License-Identifier: Apache-2.0
"""Row tflite: LiteRT's answers are within one code of the integer reference, in a file a quarter as large."""

import copy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import ModelError
from rarefy.export.litert import save_litert
from rarefy.export.litert_runner import LiteRt
from rarefy.export.onnx import export_onnx
from rarefy.export.reference import IntegerReference
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model, x = load_model("zoo:resnet8"), torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        model.train()(x)
    task = Task("noise", x[:2], calibration=DataLoader(TensorDataset(x), 16), labelled=False)
    return model.eval(), task, x


def test_codes_are_those_of_the_reference(network, tmp_path: Path) -> None:
    model, task, x = network
    (step,) = load_recipe("tflite").steps
    found = step.apply(copy.deepcopy(model), Context(task, model, torch.device("cpu")))
    program = export_onnx(found, task.example)
    names = [n.output[0] for n in program.graph.node if n.op_type == "QuantizeLinear"]
    ours = IntegerReference(program).probe(names)(x)[1:]
    theirs = LiteRt(program, threads=1).probe(names)(x)[1:]
    for mine, other in zip(ours, theirs, strict=True):
        assert float(((mine.long() - other.long()).abs() <= 1).float().mean()) >= 0.99
    size = save_litert(program, tmp_path / "net.tflite")
    weights = sum(p.numel() for p in model.parameters())
    assert size <= 4 * weights / 2.5  # of a network as small as this, headers are a tenth
    assert torch.equal(LiteRt(tmp_path / "net.tflite", threads=1)(x).argmax(1), found(x).argmax(1))


def test_what_stays_float_is_reported(network, tmp_path: Path) -> None:
    model, task, _ = network
    step = StaticInt8(runtime="litert", exclude=("first",))
    found = step.apply(copy.deepcopy(model), Context(task, model, torch.device("cpu")))
    with pytest.raises(ModelError, match="can't be written for LiteRT in int8 throughout: "):
        save_litert(export_onnx(found, task.example), tmp_path / "net.tflite")
