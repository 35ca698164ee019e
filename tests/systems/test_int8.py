# SPDX-License-Identifier: Apache-2.0
"""Row int8 (the short name of int8-affine): a quarter of the file, the same answers through the runtime."""

import onnx
import pytest

import rarefy as rf
from rarefy.measure.quality import evaluate


@pytest.fixture(scope="module")
def result(digits_network, digits_task):
    return rf.compress(digits_network, digits_task, "int8")


def test_the_file_is_about_a_quarter(result):
    first, last = result.measurements[0], result.measurements[-1]
    weights = first["bytes"]["safetensors"]
    assert last["bytes"]["onnx"] <= 0.25 * weights + 8_000  # scales, zero points and the graph


def test_accuracy_holds_through_the_runtime(result, digits_network, digits_task):
    before = evaluate(digits_network, digits_task).value
    last = result.measurements[-1]["metric"]
    assert last["through"] == "onnxruntime"
    assert abs(last["value"] - before) <= 0.01
    assert result.document["parity"]["passed"]


def test_weights_are_stored_as_int8_and_operators_are_standard(result):
    program = onnx.load(str(result.artefact.program))
    matrices = [i for i in program.graph.initializer if len(i.dims) >= 2]
    assert len(matrices) == 4
    assert {i.data_type for i in matrices} == {onnx.TensorProto.INT8}
    assert {node.domain for node in program.graph.node} <= {"", "ai.onnx"}
    kinds = [node.op_type for node in program.graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("QuantizeLinear") > 0
