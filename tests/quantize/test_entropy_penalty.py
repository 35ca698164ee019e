# SPDX-License-Identifier: Apache-2.0
"""The price of codes is their information under counts, and training under it shortens the file."""

import copy
import math

import numpy as np
import torch
from torch import nn

from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.quantize.entropy_penalty import (
    PSEUDO,
    EntropyPenalty,
    LearnedGrid,
    code_counts,
    gridded,
    information,
)
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.task import Task


def test_counts_by_row_and_column() -> None:
    codes = torch.tensor([[0, 1, 1], [2, 2, 0]])
    assert code_counts(codes, 0, 3).tolist() == [[1, 2, 0], [1, 0, 2]]
    assert code_counts(codes, 1, 3).tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 0]]


def test_information_of_integers_is_their_code_length() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 1.0]])
    counts = {-1: 1.5, 0: 3.5, 1: 2.5, 2: 0.5}  # half a count each; one code beyond for the slope
    p = {k: n / sum(counts.values()) for k, n in counts.items()}
    row, column, size = {0: 1, 1: 1, -1: 1}, {0: 0, 1: 2, -1: 0}, 3 + 2 + PSEUDO
    expected = -math.log2((row[1] + column[1] + PSEUDO * p[1]) / size)
    assert torch.allclose(information(x)[1, 2], torch.tensor(expected), atol=1e-5)


def test_between_two_codes_the_price_is_a_straight_line() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5) * 2
    x.requires_grad_()
    bits = information(x)
    (slope,) = torch.autograd.grad(bits.sum(), x)
    with torch.no_grad():
        near = x + 1e-3 * (x.floor() + 0.5 - x).sign()  # into the middle of the cell
        same = near.round() == x.round()
        moved = information(torch.where(same, near, x)) - bits
    assert torch.allclose(moved[same], (slope * (near - x))[same], atol=2e-4)


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
        estimate = sum(context.record["bits"].values()) / 8
        tensors = {name: form(v).detach().numpy() for name, v, form in gridded(found)}
        size = sum(len(encode_tensor(t)) for t in tensors.values())
        assert abs(size - estimate) < 0.12 * estimate + 120
        bake(found)
        assert all(len(np.unique(t)) <= 255 for t in tensors.values())
        sizes.append(size)
        quality.append(evaluate(found, task).value)
    print(sizes, quality)
    assert sizes[1] < 0.4 * sizes[0]
    assert quality[1] > before - 0.04
