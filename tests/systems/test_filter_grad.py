# SPDX-License-Identifier: Apache-2.0
"""Gradients of filters: an unread filter scores 0, and only |Σ g w| ignores what a batch norm absorbs."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_criteria import unit_scores
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


class Net(nn.Module):
    """A convolution with batch norm and a linear layer, for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.uniform_(-0.5, 0.5)
    net.norm.running_var.uniform_(0.5, 1.5)
    return net


def scores(net: nn.Module, task: Task, criterion: str) -> Tensor:
    groups = couple(net, task.example).groups
    torch.manual_seed(0)
    return unit_scores(net, groups, criterion, task, 128, 0)["conv"]


@pytest.mark.parametrize("criterion", ["gradient", "sensitivity", "taylor"])
def test_what_nobody_reads_scores_zero(criterion: str, net: nn.Module, digits_task: Task) -> None:
    with torch.no_grad():
        net.fc.weight[:, 2] = 0  # type: ignore[union-attr,operator]
    found = scores(net, digits_task, criterion)
    assert float(found[2]) == 0
    assert int((found > 0).sum()) == 5


def test_what_the_norm_absorbs_changes_gradients_but_not_products(
    net: nn.Module, digits_task: Task
) -> None:
    large = copy.deepcopy(net)
    factor = torch.tensor([1.0, 2.0, 4.0, 0.5, 8.0, 1.0])
    with torch.no_grad():  # the same function: eps is the only difference, so it is scaled away too
        net.norm.eps = large.norm.eps = 0.0  # type: ignore[union-attr,assignment]
        large.conv.weight.mul_(factor[:, None, None, None])  # type: ignore[union-attr,operator]
        large.norm.running_mean.mul_(factor)  # type: ignore[union-attr,operator]
        large.norm.running_var.mul_(factor**2)  # type: ignore[union-attr,operator]
    x = digits_task.example
    assert torch.allclose(net(x), large(x), atol=1e-5)
    for criterion, power in (("sensitivity", 0), ("taylor", 0), ("gradient", 1)):
        a, b = (scores(m, digits_task, criterion) for m in (net, large))
        assert torch.allclose(b * factor.double() ** power, a, rtol=1e-4)


def test_the_recipe_makes_the_network_smaller(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, size = evaluate(model, task).value, parameters(model)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in load_recipe("filter-grad").steps:
        model = step.apply(model, ctx)
    assert parameters(model) < 0.75 * size
    assert evaluate(model, task).value >= before - 0.04
