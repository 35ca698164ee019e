# SPDX-License-Identifier: Apache-2.0
"""Tai's closed form: the optimum, the same convolution, and a structure that trains from scratch."""

import copy

import pytest
import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.distill.finetune import Finetune
from rarefy.factorize.alternating import alternate_on_weights
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.factorize import Factorize
from rarefy.factorize.split import as_matrix
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


@pytest.mark.parametrize("K", [1, 4, 9])
def test_the_closed_form_is_the_optimum(K: int) -> None:
    N, C, d = 7, 5, 3
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(N, C, d, d, generator=draw, dtype=torch.float64)
    M = W.permute(1, 2, 3, 0).reshape(C * d, d * N)  # M[(c, i), (j, n)] = W[n, c, i, j]
    made = DECOMPOSITIONS["spatial"](W.unsqueeze(0))
    weights = made.weights((K,))
    near = made.dense((K,), weights)[0]
    tail = float(torch.linalg.svdvals(M)[K:].square().sum().sqrt())
    assert float((near - W).norm()) == pytest.approx(tail, rel=1e-9)
    for seed in range(3):
        start = torch.randn(1, C * d, K, generator=draw.manual_seed(seed), dtype=torch.float64)
        *_, errors = alternate_on_weights(as_matrix(W.unsqueeze(0), 1), start, 50)
        assert errors[-1] >= tail**2 * (1 - 1e-9)
    layer = nn.Conv2d(C, N, d, stride=(2, 1), padding=1).double()
    chain = made.build(layer, (K,), weights, layer.bias)
    x = torch.randn(2, C, 9, 8, generator=draw, dtype=torch.float64)
    wanted = nn.functional.conv2d(x, near, layer.bias, (2, 1), 1)
    torch.testing.assert_close(chain(x), wanted, rtol=1e-12, atol=1e-12)


def test_training_from_scratch_with_norms(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = DigitsNet().eval()
    context = Context(digits_task, model, torch.device("cpu"), 3)
    start = Factorize(decomposition="spatial", rank=6, start="random", norms=True, layers="conv2")
    small, _ = apply_step(start, copy.deepcopy(model), context)
    assert [type(part) for part in small.conv2] == [nn.Conv2d, nn.BatchNorm2d] * 2  # type: ignore[union-attr]
    again, _ = apply_step(start, copy.deepcopy(model), context)
    assert torch.equal(small.conv2[0].weight, again.conv2[0].weight)  # type: ignore[index, union-attr]
    trained, _ = apply_step(Finetune(epochs=8, rate=0.05), small, context)
    assert evaluate(trained, digits_task).value >= 0.93
    assert all(torch.isfinite(p).all() for p in trained.parameters())


def test_the_recipe_loses_little(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    current = copy.deepcopy(model)
    for number, step in enumerate(load_recipe("tai").steps):
        context = Context(task, model, torch.device("cpu"), number)
        current, _ = apply_step(step, current, context)
    assert isinstance(current.conv2, nn.Sequential)
    assert evaluate(current, task).value >= evaluate(model, task).value - 0.02
