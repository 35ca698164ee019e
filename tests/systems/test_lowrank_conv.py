# SPDX-License-Identifier: Apache-2.0
"""A convolution to few maps with a 1 x 1 one behind it is the approximated kernel, bias and all."""

import copy

import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.kernel import kernel_of, weight_from
from rarefy.measure.counts import macs
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.select import Layer
from rarefy.step import Context
from rarefy.task import Task


@torch.no_grad()
def test_two_convolutions_are_the_approximated_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=2, dilation=2)
    for name, flat in (("svd", (10, 54)), ("channel", None)):
        kernel = kernel_of(Layer("", layer))
        made = DECOMPOSITIONS[name](kernel)
        weights = made.weights((4,))
        dense = made.dense((4,), weights)
        chain = made.build(layer, (4,), weights, layer.bias)
        twin = copy.deepcopy(layer)
        twin.weight.copy_(weight_from(layer, dense))
        x = torch.randn(2, 6, 17, 15)
        torch.testing.assert_close(chain(x), twin(x), rtol=1e-5, atol=1e-5)
        assert chain[0].bias is None
        assert torch.equal(chain[1].bias, layer.bias)
        W = layer.weight.reshape(10, 54) if flat else layer.weight.transpose(0, 1).reshape(6, 90)
        tail = torch.linalg.svdvals(W)[4:].square().sum().sqrt()
        torch.testing.assert_close((dense - kernel).norm(), tail, rtol=1e-5, atol=1e-6)
        sizes = [tuple(part.weight.shape) for part in chain]
        assert sizes == ([(4, 6, 3, 3), (10, 4, 1, 1)] if flat else [(4, 6, 1, 1), (10, 4, 3, 3)])


def test_the_recipe_halves_the_operations(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    (step,) = load_recipe("lowrank-conv").steps
    context = Context(task, model, torch.device("cpu"))
    small, _ = apply_step(step, copy.deepcopy(model), context)
    assert macs(small, task.example) <= 0.5 * macs(model, task.example)
    assert isinstance(small.fc1, nn.Linear), "linear layers were not asked for"
    assert evaluate(small, task).value >= evaluate(model, task).value - 0.03
