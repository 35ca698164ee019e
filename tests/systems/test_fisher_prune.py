# SPDX-License-Identifier: Apache-2.0
"""Fisher information of units: examples squared one by one, coupled layers summed first, work counted."""

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.graph.coupling import couple
from rarefy.measure.counts import macs
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_criteria import unit_scores
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def opposite(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] * targets).mean()


def test_two_opposite_examples_do_not_cancel() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(1, 3).repeat(2, 1)
    task = Task("pair", example=x, train=[(x, torch.tensor([1.0, -1.0]))], loss=opposite)
    (group,) = couple(net, x).groups
    found = unit_scores(net, [group], "fisher", task, 2, 0)[group.name]
    with torch.no_grad():
        slope = net[0](x[0]) * net[1].weight[0]  # type: ignore[index,operator]
    assert torch.allclose(found.float(), 0.5 * slope.square(), rtol=1e-5)  # (s² + s²) / 2 / 2
    cancelled = unit_scores(net, [group], "taylor-activation", task, 2, 0)[group.name]
    assert float(cancelled.abs().max()) < 1e-7


class Stream(nn.Module):
    """Two convolutions read one residual stream; a third adds to it between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.add = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.add(x)).relu()).mean((2, 3))


def test_coupled_layers_have_one_score_whose_slopes_are_added_before_squaring() -> None:
    torch.manual_seed(0)
    net, x = Stream().double(), torch.randn(6, 2, 4, 4).double()
    y = torch.randint(0, 3, (6,))
    task = Task("stream", example=x, train=[(x[:2], y[:2]), (x[2:], y[2:])], loss=F.cross_entropy)
    (group,) = couple(net, x).groups
    assert {m.name for m in group.members if m.role == "out"} == {"stem.weight", "add.weight"}
    found = unit_scores(net, [group], "fisher", task, 6, 0)[group.name]
    expected = torch.zeros(5, dtype=torch.float64)
    for i in range(6):  # one mask on everything that reads the stream, example by example
        mask = torch.ones(5, dtype=torch.float64, requires_grad=True)
        spread = mask[:, None, None]
        stem = net.stem(x[i : i + 1])
        out = net.head((stem + net.add(stem * spread)).relu() * spread).mean((2, 3))
        (slope,) = torch.autograd.grad(F.cross_entropy(out, y[i : i + 1]), mask)
        expected += 0.5 * slope.square() / 6
    assert torch.allclose(found, expected)


def test_without_labels_the_network_answers_itself(digits: tuple[nn.Module, Task]) -> None:
    """Drawn answers give the true Fisher information; of many draws it is near the expectation."""
    model, task = digits
    x = next(iter(task.batches("validation")))[0][:8]
    many = [x] * 400
    blind = dataclasses.replace(task, labelled=False, calibration=many, train=None)
    group = couple(model, x).groups[0]
    found = unit_scores(model, [group], "fisher", blind, 8 * 400, 0)[group.name]
    known = torch.zeros(group.size, dtype=torch.float64)
    with torch.no_grad():
        p = model(x).softmax(1)
    for k in range(10):
        each = dataclasses.replace(
            task, train=[(x[i : i + 1], torch.tensor([k])) for i in range(8)], loss=F.cross_entropy
        )
        for i in range(8):
            one = dataclasses.replace(each, train=[each.train[i]])  # type: ignore[index]
            score = unit_scores(model, [group], "fisher", one, 1, 0)[group.name]
            known += p[i, k].double() * score / 8
    assert float((found - known).abs().max()) < 0.35 * float(known.max())
    assert float(torch.corrcoef(torch.stack([found, known]))[0, 1]) > 0.95


def test_cost_aware_ranking_takes_dear_units_first(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits

    def left(per: str) -> float:
        step = PruneChannels(criterion="fisher", per=per, sparsity=0.4, examples=256)  # type: ignore[arg-type]
        ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
        return macs(step.apply(copy.deepcopy(model), ctx), task.example)

    assert left("macs") < left("unit")  # as many units, more work saved


def test_the_recipe_meets_its_budget(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, work = evaluate(model, task).value, macs(model, task.example)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in load_recipe("fisher-prune").steps:
        model = step.apply(model, ctx)
    assert 0.4 * work < macs(model, task.example) <= 0.5 * work
    assert evaluate(model, task).value >= before - 0.04
