# SPDX-License-Identifier: Apache-2.0
"""Row grad-quant: random rounding is unbiased, 8-bit gradients train as floats do, 2-bit ones worse."""

import copy
from dataclasses import replace

import torch
from torch import nn

from rarefy.measure.quality import evaluate
from rarefy.quantize.gradient_rounding import stochastic_gradient, uniform_gradient
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def test_the_expected_gradient_is_the_gradient() -> None:
    torch.manual_seed(0)
    g = torch.randn(4, 16)
    number = 4000
    draws = torch.stack([stochastic_gradient(g, 3) for _ in range(number)])
    step = 2 * g.abs().amax(1, keepdim=True) / 7
    assert bool(((draws.mean(0) - g).abs() <= 5 * step / 2 / number**0.5).all())
    biased = uniform_gradient(g, 3)
    assert bool(((biased - g).abs() > 5 * step / 2 / number**0.5).any())


def test_eight_bits_train_as_floats_do_and_two_do_worse(digits_task: Task) -> None:
    task = replace(digits_task, validation=None)
    losses = {}
    for bits in (2, 8, 32):
        torch.manual_seed(0)
        model = DigitsNet()
        step = QuantizationAwareTraining(
            bits=32, activation_bits=32, end_bits=32, gradient_bits=bits,
            epochs=7, rate=0.05, alpha=0.0,
        )  # fmt: skip
        context = Context(task, copy.deepcopy(model), torch.device("cpu"))
        found = step.apply(model, context)
        losses[bits] = context.record["training"][-1]["loss"]
        if bits > 2:
            assert evaluate(found, task).value >= 0.9
    assert abs(losses[8] - losses[32]) <= 0.03
    assert losses[2] > losses[8] + 0.03


def test_the_recipe_keeps_the_accuracy(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    (step,) = load_recipe("grad-quant").steps
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    assert evaluate(step.apply(model, context), task).value >= before - 0.01
