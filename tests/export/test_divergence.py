# SPDX-License-Identifier: Apache-2.0
"""The first layer that differs is named, whichever weight of the file was changed."""

from dataclasses import dataclass

import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from rarefy.export.divergence import jump, locate, owner, values_of_modules
from rarefy.export.onnx import graph_of, to_proto
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.zoo.models import load_model


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ({"a": 1e-7, "b": 3e-7, "c": 1e-6}, None),
        ({"a": 1e-7, "b": 2e-2, "c": 5e-2}, "b"),
        # the fault is small where it is and grows behind it
        ({"a": 1e-7, "b": 5e-4, "c": 9e-4, "d": 4e-3}, "b"),
        ({"a": 0.5, "b": 0.9}, "a"),
        ({}, None),
    ],
)
def test_the_layer_is_where_the_error_leaves_the_noise(
    errors: dict[str, float], named: str | None
) -> None:
    assert jump(errors, tolerance=1e-3, noise=1e-5) == named


def test_a_quantiser_is_named_by_the_module_whose_call_it_rounds(quantised: nn.Module) -> None:
    assert owner(quantised, "activation_quantizers.quantizers.4") == "fc"
    assert owner(quantised, "activation_quantizers.quantizers.0") == "input#0"
    assert owner(quantised, "conv1") == "conv1"


@dataclass
class Case:
    """A network, its file, and which value of the file belongs to which module."""

    model: nn.Module
    program: ModelProto
    values: dict[str, str]
    x: Tensor


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Both networks with batch norms that do something; each exported once."""
    found = {}
    torch.manual_seed(0)
    for name, shape in (("lenet5", (1, 28, 28)), ("resnet20", (3, 32, 32))):
        model, x = load_model(f"zoo:{name}").train(), torch.randn(16, *shape)
        with torch.no_grad():
            model(x)
        graph = graph_of(model.eval(), x)
        found[name] = Case(model, to_proto(graph), values_of_modules(graph), x[:4])
    return found


def tampered(program: ModelProto, name: str) -> ModelProto:
    """A copy in which a quarter of a tensor has the other sign."""
    copy = ModelProto()
    copy.CopyFrom(program)
    (tensor,) = [t for t in copy.graph.initializer if t.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[: max(1, array.size // 4)] *= -1
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


@pytest.mark.parametrize(
    ("network", "tensor"),
    [
        ("lenet5", "conv1.weight"),
        ("lenet5", "conv2.bias"),
        ("lenet5", "fc1.weight"),
        ("lenet5", "fc2.weight"),
        ("resnet20", "conv1.weight"),
        ("resnet20", "layer1.1.conv2.weight"),
        ("resnet20", "layer2.0.conv1.weight"),
        ("resnet20", "layer2.1.bn1.running_mean"),
        ("resnet20", "layer3.2.conv2.weight"),
        ("resnet20", "fc.weight"),
    ],
)
def test_the_layer_of_a_tampered_tensor_is_named(
    cases: dict[str, Case], network: str, tensor: str
) -> None:
    case = cases[network]
    runtime = OnnxRuntime(tampered(case.program, tensor))
    found = locate(case.model, runtime, case.x, case.values, tolerance=1e-3, noise=1e-5)
    assert found == tensor.rpartition(".")[0]


@pytest.mark.parametrize("network", ["lenet5", "resnet20"])
def test_no_layer_of_a_true_file_is_named(cases: dict[str, Case], network: str) -> None:
    case = cases[network]
    runtime = OnnxRuntime(case.program)
    assert locate(case.model, runtime, case.x, case.values, tolerance=1e-4, noise=1e-6) is None
    leaves = {path for path, module in case.model.named_modules() if not list(module.children())}
    assert leaves <= case.values.keys()
