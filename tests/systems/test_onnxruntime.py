# SPDX-License-Identifier: Apache-2.0
"""Row onnxruntime: every network of the zoo computes there what it computes here, also in integers."""

import copy

import onnx
import pytest
import torch
from onnx import version_converter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import Parity, check_parity
from rarefy.measure.latency import latency
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import ZOO, load_model

SHAPES = {
    "digits-net": (1, 8, 8),
    "lenet300": (1, 28, 28),
    "lenet5": (1, 28, 28),
    "small-vgg": (3, 32, 32),
    "small-vgg-gray": (1, 28, 28),
    "resnet20": (3, 32, 32),
    "resnet32": (3, 32, 32),
}
# layers that multiply: all of them must do so in integers
LAYERS = {"lenet300": (0, 3), "lenet5": (2, 2), "resnet20": (19, 1)}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network whose batch norms have seen data, and inputs."""
    torch.manual_seed(0)
    model, x = load_model(f"zoo:{name}"), torch.randn(48, *SHAPES[name])
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


def test_the_depths_left_out_are_made_of_the_same_blocks() -> None:
    assert ZOO.keys() - SHAPES.keys() == {"resnet8", "resnet44", "resnet56", "resnet110"}


@pytest.mark.parametrize("name", SHAPES)
def test_parity_of_every_network(name: str) -> None:
    model, x = network(name)
    program = export_onnx(model, x[:1])
    runtime = OnnxRuntime(program)
    parity = check_parity(model, runtime, [x[:1], x[1:]])
    assert parity.passed
    assert parity.max_relative <= 1e-4
    assert parity.agreement == 1.0
    assert parity.samples == 48
    assert runtime.precision == "float32"
    assert {opset.domain for opset in program.opset_import} == {""}
    if name == "digits-net":
        matrix_of_versions(program, x)
        timed = latency({"torch": model, "onnxruntime": runtime}, x[:1], rounds=7, budget=0.5)
        assert all(found.rounds == 7 and found.median > 0 for found in timed.values())


def matrix_of_versions(program: onnx.ModelProto, x: Tensor) -> None:
    """The same program in later versions of the standard gives the same answers."""
    answer = OnnxRuntime(program)(x)
    for opset in range(21, 25):
        later = version_converter.convert_version(program, opset)
        assert torch.allclose(OnnxRuntime(later)(x), answer, atol=1e-5)


@pytest.fixture(scope="module")
def in_integers() -> dict[str, tuple[OnnxRuntime, OnnxRuntime, Parity]]:
    """Quantised networks in the runtime: as they are, with 16-bit overflow allowed, and their parity."""
    found = {}
    for name in LAYERS:
        model, x = network(name)
        batches = DataLoader(TensorDataset(x), batch_size=16)
        task = Task("noise", example=x[:2], calibration=batches, labelled=False)
        context = Context(task, copy.deepcopy(model), torch.device("cpu"))
        quantised = StaticInt8().apply(model, context)
        program = export_onnx(quantised, x[:1])
        runtime = OnnxRuntime(program)
        parity = check_parity(quantised, runtime, [x])
        found[name] = (runtime, OnnxRuntime(program, exact=False), parity)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_quantised_networks_multiply_in_integers_and_keep_parity(
    name: str, in_integers: dict[str, tuple[OnnxRuntime, OnnxRuntime, Parity]]
) -> None:
    runtime, hasty, parity = in_integers[name]
    convolutions, matrices = LAYERS[name]
    for counts in (runtime.node_counts(), hasty.node_counts()):
        products = ("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
        assert counts.get("QLinearConv", 0) == convolutions
        assert sum(counts.get(kind, 0) for kind in products) == matrices
        assert not {"Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul"} & counts.keys()
    assert runtime.precision == "int8"
    assert parity.passed
    # a rounding that falls the other way costs a step of 1/255 of the range, a few of them at the output
    assert parity.max_relative <= 6 / 255


def test_weights_are_safe_from_overflow_by_themselves(
    in_integers: dict[str, tuple[OnnxRuntime, OnnxRuntime, Parity]],
) -> None:
    for name, (runtime, hasty, _) in in_integers.items():
        assert not runtime.exact
        x = network(name)[1]
        assert torch.equal(runtime(x), hasty(x))


def test_full_range_weights_are_protected_from_overflow() -> None:
    model, x = network("lenet300")
    task = Task("noise", example=x[:2], calibration=[x], labelled=False)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    program = export_onnx(StaticInt8(overflow="allow").apply(model, context), x[:1])
    assert OnnxRuntime(program).exact
    assert not OnnxRuntime(program, exact=False).exact
