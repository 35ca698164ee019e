# SPDX-License-Identifier: Apache-2.0
"""Row lowbit: the step's gradient is LSQ's, 4 bits cost little, and the file shrinks with the bits."""

import copy
import math
from dataclasses import replace

import torch
from torch import nn

from rarefy.forms.affine import Quantised
from rarefy.forms.shadow import find
from rarefy.measure.quality import evaluate
from rarefy.quantize.learned_step import learned_round
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def test_the_gradient_of_a_step_is_the_paper_s() -> None:
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    s = torch.tensor(0.3, requires_grad=True)
    g = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    learned_round(x, s, torch.tensor(0, dtype=torch.int8), -1, -8, 7).backward(g)
    u = x / 0.3
    slope = torch.where(u <= -8, -8.0, torch.where(u >= 7, 7.0, u.round() - u))
    assert torch.allclose(s.grad, (slope * g).sum() / math.sqrt(30 * 7), rtol=1e-4)


def test_the_recipe_loses_little_and_codes_keep_to_their_bits(
    digits_network: nn.Module, digits_task: Task
) -> None:
    (step,) = load_recipe("lowbit").steps
    context = Context(digits_task, digits_network, torch.device("cpu"))
    model = step.apply(copy.deepcopy(digits_network), context)
    assert evaluate(model, digits_task).value >= evaluate(digits_network, digits_task).value - 0.015
    layers = [m for m in model.modules() if find_weight(m)]
    bits = [find(m, Quantised).bits for m in layers]
    assert (bits[0], bits[-1]) == (8, 8)
    assert set(bits[1:-1]) == {4}
    for layer in layers[1:-1]:
        assert len(layer.parametrizations.weight.original.unique()) <= 16


def find_weight(module: nn.Module) -> bool:
    """Whether a module holds a quantised weight."""
    return hasattr(module, "weight") and find(module, Quantised) is not None


def test_more_bits_lose_no_more(digits_network: nn.Module, digits_task: Task) -> None:
    task = replace(digits_task, validation=None)
    errors = []
    exact = digits_network(digits_task.example)
    for bits in (2, 4, 8):
        step = QuantizationAwareTraining(bits=bits, activation_bits=bits, epochs=0)
        context = Context(task, digits_network, torch.device("cpu"))
        model = step.apply(copy.deepcopy(digits_network), context)
        errors.append(float((model(digits_task.example) - exact).detach().norm()))
        assert evaluate(model, task).value >= 0.3
    assert errors[0] > errors[1] > errors[2]
