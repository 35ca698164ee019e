# SPDX-License-Identifier: Apache-2.0
"""Blocks leave a trained residual network: what they cost alone says which; distillation brings most back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.distill.distill import Distill
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_layers import PruneLayers
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.resnet import CifarResNet


class Grey(nn.Module):
    """A ResNet-20 of a quarter of the width for grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = CifarResNet(20, width=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def residual(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(Grey(), digits_task, Training(epochs=4, rate=0.1), seed=0)


def pruned(model: nn.Module, task: Task, step: PruneLayers) -> tuple[nn.Module, Context]:
    context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    return step.apply(copy.deepcopy(model), context), context


@pytest.mark.parametrize("criterion", ["loss", "output", "influence"])
def test_what_matters_least_goes(criterion: str, residual: nn.Module, digits_task: Task) -> None:
    """The block that a criterion takes costs less than blocks do on average."""
    names = [
        f"net.layer{i}.{j}" for i, j in ((1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2))
    ]
    step = PruneLayers(sparsity=0.1, criterion=criterion)  # type: ignore[arg-type]
    found, context = pruned(residual, digits_task, step)
    assert [told["block"] in names for told in context.record["removed"]] == [True]
    one = {name: evaluate(without(residual, name), digits_task).value for name in names}
    assert evaluate(found, digits_task).value >= sum(one.values()) / len(one)


def without(model: nn.Module, name: str) -> nn.Module:
    """The network with a block replaced by the identity, by hand."""
    copied = copy.deepcopy(model)
    parent, _, last = name.rpartition(".")
    copied.get_submodule(parent)[int(last)] = nn.Identity()  # type: ignore[operator]
    return copied


def test_a_third_of_the_blocks_goes(residual: nn.Module, digits_task: Task) -> None:
    dense = evaluate(residual, digits_task).value
    prune, distill = load_recipe("layer-prune").steps
    assert isinstance(prune, PruneLayers)
    assert isinstance(distill, Distill)
    found, context = pruned(residual, digits_task, prune)
    assert len(context.record["removed"]) == 2
    x = digits_task.example
    assert macs(found, x) < 0.85 * macs(residual, x)
    assert parameters(found) < parameters(residual)
    found = distill.apply(found, context)
    assert evaluate(found, digits_task).value >= dense - 0.02
