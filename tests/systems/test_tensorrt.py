# SPDX-License-Identifier: Apache-2.0
"""Row tensorrt: the QDQ file keeps the rules of explicit quantisation; one for another runtime does not."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rarefy.export.onnx import export_onnx
from rarefy.export.parity import check_parity
from rarefy.export.rules import tensorrt_faults
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model, x = load_model("zoo:resnet20"), torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        model.train()(x)
    task = Task("noise", x[:2], calibration=DataLoader(TensorDataset(x), 16), labelled=False)
    return model.eval(), task, x


def quantised(step, network):
    model, task, _ = network
    return step.apply(copy.deepcopy(model), Context(task, model, torch.device("cpu")))


def test_the_file_keeps_the_rules(network):
    (step,) = load_recipe("tensorrt").steps
    found = quantised(step, network)
    program = export_onnx(found, network[1].example)
    assert tensorrt_faults(program) == []
    kinds = [node.op_type for node in program.graph.node]
    assert kinds.count("Conv") == 19
    assert kinds.count("Add") == 9
    assert check_parity(found, program, [network[2]]).passed


def test_a_file_for_another_runtime_does_not(network):
    faults = tensorrt_faults(export_onnx(quantised(StaticInt8(), network), network[1].example))
    assert any("is not quantised to int8" in fault for fault in faults)
    assert any("the bias of Conv" in fault for fault in faults)


def test_layers_left_in_float_are_no_fault_but_half_quantised_sums_are(network):
    step = StaticInt8(runtime="tensorrt", exclude=("first",))
    program = export_onnx(quantised(step, network), network[1].example)
    assert tensorrt_faults(program) == []
    add = next(node for node in program.graph.node if node.op_type == "Add")
    maker = {name: node for node in program.graph.node for name in node.output}[add.input[0]]
    quantiser = {name: node for node in program.graph.node for name in node.output}[maker.input[0]]
    add.input[0] = quantiser.input[0]
    assert any("of Add" in fault for fault in tensorrt_faults(program))
