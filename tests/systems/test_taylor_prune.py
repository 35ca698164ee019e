# SPDX-License-Identifier: Apache-2.0
"""First-order Taylor scores: exact for linear losses, the same at gates, near a unit's true worth."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.graph.coupling import couple
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_activity import mask_slopes
from rarefy.prune.channel_criteria import unit_scores
from rarefy.prune.channel_sites import Site
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import LeNet5


@pytest.mark.parametrize("criterion", ["taylor-activation", "sensitivity"])
def test_a_linear_loss_changes_by_exactly_the_score(criterion: str) -> None:
    """The loss is linear in the outputs of the first layer: without a unit it changes by its score."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 7, 3), nn.Flatten(), nn.Linear(7 * 9, 3)).double()
    x, y = torch.randn(5, 2, 5, 5).double(), torch.randn(5, 3).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).sum(1).mean()

    task = Task("linear", example=x, train=[(x, y)], calibration=[(x, y)], loss=loss)
    (group,) = couple(net, x).groups
    found = unit_scores(net, [group], criterion, task, 5, 0)[group.name]
    for unit in range(7):
        less = copy.deepcopy(net)
        with torch.no_grad():
            less[0].weight[unit], less[0].bias[unit] = 0, 0  # type: ignore[index]
            change = float(loss(less(x), y) - loss(net(x), y))
        assert float(found[unit]) == pytest.approx(abs(change), rel=1e-6)


def test_the_gate_of_a_norm_has_the_slope_of_its_activations() -> None:
    """Σ over examples and positions of a · dL/da behind a norm is γ dL/dγ + β dL/dβ."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    net = nn.Sequential(*layers).double().eval()
    net[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]
    net[1].bias.data.uniform_(-1, 1)  # type: ignore[union-attr,operator]
    x, y = torch.randn(4, 2, 5, 5).double(), torch.tensor([0, 1, 2, 0])
    every = torch.arange(6)
    behind = {"gate": (Site("1", "output", -3, 6, every, every, 6),)}
    (slopes,) = mask_slopes(net, behind, [(x, y)], F.cross_entropy)
    F.cross_entropy(net(x), y).backward()
    norm = net[1]
    gate = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad  # type: ignore[union-attr,operator]
    assert torch.allclose(slopes["gate"].sum(0), gate.detach())
    task = Task("gates", example=x, train=[(x, y)], loss=F.cross_entropy)
    groups = couple(net, x).groups
    found = unit_scores(net, groups, "taylor-gate", task, 4, 0)[groups[0].name]
    assert torch.allclose(found, gate.detach().square())


def test_scores_are_close_to_the_loss_without_each_unit(digits_task: Task) -> None:
    """The 50 channels of LeNet-5's second convolution, one left out at a time, while there is slope."""
    torch.manual_seed(0)
    train = [(F.interpolate(x, (28, 28)), y) for x, y in digits_task.batches("train")]
    few = dataclasses.replace(digits_task, example=train[0][0][:4], train=train)
    model = fit(LeNet5(), few, Training(epochs=1, rate=0.02))
    train = train[:4]
    few = dataclasses.replace(few, train=train)
    group = next(g for g in couple(model, few.example).groups if g.name == "conv2")

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float(sum(F.cross_entropy(network(x), y, reduction="sum") for x, y in train))

    whole, changes = loss(model), []
    for unit in range(group.size):
        less = copy.deepcopy(model)
        with torch.no_grad():
            for member in (m for m in group.members if m.role == "in"):
                columns = member.places[member.units == unit]
                less.get_parameter(member.name).index_fill_(member.axis, columns, 0)
        changes.append(abs(loss(less) - whole))

    def agreement(criterion: str) -> float:
        found = unit_scores(model, [group], criterion, few, 10_000, 0)[group.name]
        pair = torch.stack([found, torch.tensor(changes, dtype=torch.float64)])
        return float(torch.corrcoef(pair)[0, 1])

    assert group.size == 50
    assert agreement("taylor-activation") >= 0.8
    assert agreement("sensitivity") >= 0.8
    assert agreement("l1") < agreement("taylor-activation")


def test_the_recipe_prunes_in_steps(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, size = evaluate(model, task).value, parameters(model)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in load_recipe("taylor-prune").steps:
        model = step.apply(model, ctx)
    assert len(ctx.record["rounds"]) == 5
    assert parameters(model) < 0.6 * size
    assert evaluate(model, task).value >= before - 0.04
