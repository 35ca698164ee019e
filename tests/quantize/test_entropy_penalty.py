# SPDX-License-Identifier: Apache-2.0
"""Training under the price of codes shortens the file."""

import copy
import math

import numpy as np
import torch
from torch import nn

from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.quantize.entropy_penalty import (
    EntropyPenalty,
    LearnedGrid,
    gridded,
)
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.task import Task


def test_the_step_gets_the_gradient_of_rounding() -> None:
    form, v = LearnedGrid(-1.0), torch.tensor([0.3, 0.9, -1.6])
    form(v).sum().backward()
    step = 0.5
    expected = ((v / step).round() - v / step).sum() * step * math.log(2)
    assert torch.allclose(form.exponent.grad, expected)


def test_training_under_the_price_shortens_the_file(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    sizes, quality = [], []
    for strength in (1e-6, 1.0):
        context = Context(task, model, torch.device("cpu"), 0, {})
        step = EntropyPenalty(strength=strength, epochs=8, bits=4, rate=5e-3)
        found = step.apply(copy.deepcopy(model), context)
        tensors = {name: form(v).detach().numpy() for name, v, form in gridded(found)}
        told = sum(len(encode_tensor(t)) for t in tensors.values())
        assert 8 * told == sum(context.record["bits"].values())
        bake(found)
        assert all(len(np.unique(t)) <= 255 for t in tensors.values())
        sizes.append(sum(len(encode_tensor(t, "mixing")) for t in tensors.values()))
        quality.append(evaluate(found, task).value)
    assert sizes[1] < 0.4 * sizes[0]
    assert quality[1] > before - 0.04
