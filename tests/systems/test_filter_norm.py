# SPDX-License-Identifier: Apache-2.0
"""Filter pruning by norm: the cut network equals the masked one, costs follow the formulas, files reload."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.snapshot import restore, snapshot
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)


class Everything(nn.Module):
    """Residual sum, concatenation, depthwise and grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.side, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.na(self.a(x)).relu()
        y = self.depthwise(y + self.nb(self.b(y)).relu())
        y = self.grouped(torch.cat([y, self.side(x)], 1)).relu()
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_cut_network_computes_what_the_masked_one_does(share: float) -> None:
    """Masking by hand: every filter that goes is zero, with bias and norm, in a copy of the network."""
    torch.manual_seed(0)
    net, x = Everything().eval(), torch.randn(4, 3, 6, 6)
    for norm in (net.na, net.nb):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.bias.data.uniform_(-0.5, 0.5)
    task = Task("none", example=x)
    found = PruneChannels(criterion="l1", allocation="local", sparsity=share).apply(
        copy.deepcopy(net), context(net, task)
    )
    masked = copy.deepcopy(net)
    norms = {"a": masked.na, "b": masked.nb}
    with torch.no_grad():
        for name, module in masked.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            # biases are random, so they tell which filters are left
            gone = ~torch.isin(module.bias, found.get_submodule(name).bias)  # type: ignore[arg-type]
            for each in (module, norms[name]) if name in norms else (module,):
                each.weight[gone] = 0
                each.bias[gone] = 0  # type: ignore[index]
        assert float((found(x) - masked(x)).abs().max()) <= 1e-5
    assert found.a.out_channels == round((1 - share) * 8)
    assert parameters(found) < parameters(net)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.25), (0.25, 0.75)])
def test_costs_fall_as_the_formula_says(first: float, second: float) -> None:
    """(1 - r_in)(1 - r_out) of a layer's multiplications and weights are left."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 4, 1),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 8, 8)
    step = PruneChannels(criterion="l1", sparsities={"0": first, "2": second})
    found = step.apply(copy.deepcopy(net), context(net, Task("none", example=x)))
    a, b = 1 - first, 1 - second
    assert macs(found, x) == 64 * (27 * 16 * a + 9 * 16 * 32 * a * b + 32 * 4 * b)
    assert parameters(found) == 28 * 16 * a + (9 * 16 * a + 1) * 32 * b + (32 * b + 1) * 4


def test_a_stage_of_it_reloads(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    (step, *_) = load_recipe("filter-norm").steps
    found = step.apply(copy.deepcopy(model), context(model, task))
    structure, tensors = snapshot(found)
    back = restore(model, structure, tensors)
    assert torch.equal(back(task.example), found(task.example))  # type: ignore[arg-type]
    fresh = DigitsNet().eval()
    again = step.apply(fresh, context(fresh, task))  # other weights, the same shapes
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(task.example), found(task.example))  # type: ignore[arg-type]


def test_half_of_the_filters_cost_little(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, size, work = evaluate(model, task).value, parameters(model), macs(model, task.example)
    ctx = context(model, task)
    for step in load_recipe("filter-norm").steps:
        model = step.apply(model, ctx)
    assert parameters(model) < 0.5 * size
    assert macs(model, task.example) < 0.5 * work
    assert evaluate(model, task).value >= before - 0.04
