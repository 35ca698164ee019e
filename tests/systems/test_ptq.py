# SPDX-License-Identifier: Apache-2.0
"""Row ptq: batch norms fold exactly, integers alone give what the emulation gives, the file is a quarter."""

import copy

import pytest
import torch
from torch import nn

import rarefy as rf
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.reference import IntegerReference
from rarefy.forms.activations import quantizers_of
from rarefy.forms.affine import Quantised
from rarefy.forms.shadow import find
from rarefy.graph.fold import fold_batch_norms
from rarefy.measure.quality import evaluate
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task


def test_folded_norms_change_nothing():
    torch.manual_seed(0)
    model, x = load_model("zoo:resnet20"), torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        model.train()(x)
        expected = model.eval()(x)
        assert len(fold_batch_norms(model, x)) == 19
        assert float((model(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.fixture(scope="module")
def quantised(digits_network, digits_task):
    (step,) = load_recipe("ptq").steps
    context = Context(digits_task, digits_network, torch.device("cpu"))
    return step.apply(copy.deepcopy(digits_network), context)


def test_scales_are_those_of_the_formulas(quantised, digits_network):
    w, form = digits_network.fc1.weight, find(quantised.fc1, Quantised)
    # the largest of a channel has code 127, but where pairs of codes would overflow
    assert torch.all(form.scale >= w.abs().amax(1) / 127 * 0.9999)
    assert torch.all(form.scale <= 2 * w.abs().amax(1).clamp(min=1e-9) / 127)
    assert torch.all(form.zero_point == 0)
    for quantizer in quantizers_of(quantised).quantizers:
        assert float(quantizer(torch.zeros(1))) == 0.0
        inside = torch.arange(quantizer.low, quantizer.high) - quantizer.zero_point + 0.3
        inside = inside * quantizer.scale
        assert float((quantizer(inside) - inside).abs().max()) <= float(quantizer.scale) * 0.5001
    bias = find(quantised.fc1, Quantised, "bias")
    assert bias is not None
    assert quantised.fc1.parametrizations.bias.original.dtype == torch.int32


def test_integers_alone_give_the_emulated_and_the_runtime_s_answers(quantised, digits_task):
    program = export_onnx(quantised, digits_task.example)
    x = next(iter(digits_task.batches("test")))[0]
    reference, runtime = IntegerReference(program), OnnxRuntime(program)
    exact = reference(x)
    assert len(reference.integer) >= 4
    step = float(exact.max() - exact.min()) / 255
    assert float((quantised(x) - exact).abs().max()) <= step
    assert float((runtime(x) - exact).abs().max()) <= step
    before, after = digits_task.test, evaluate(runtime, digits_task).value
    assert before is not None
    assert after >= evaluate(quantised, digits_task).value - 0.004


def test_accuracy_stays(quantised, digits_network, digits_task):
    before = evaluate(digits_network, digits_task).value
    assert abs(evaluate(quantised, digits_task).value - before) <= 0.004  # one of 300


def test_the_file_is_a_quarter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10)).eval()
    task = load_task("random-images:1x28x28")
    context = Context(task, model, torch.device("cpu"))
    quantised = StaticInt8(examples=8).apply(copy.deepcopy(model), context)
    small, large = (
        len(export_onnx(m, task.example).SerializeToString()) for m in (quantised, model)
    )
    assert 3.9 <= large / small <= 4.0


def test_a_row_runs_as_a_recipe():
    assert [type(step) for step in load_recipe("ptq").steps] == [rf.StaticInt8]
