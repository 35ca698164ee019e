# SPDX-License-Identifier: Apache-2.0
"""The search for ratios: budgets are met, candidates are what they are said to be, the best is returned."""

import copy

import pytest
import torch
from torch import nn

from rarefy.errors import ModelError
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.eagle_eye import EagleEye, candidate_network, draw
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.vgg import SmallVGG


@pytest.fixture(scope="module")
def vgg(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(SmallVGG(1, 10, 4), digits_task, Training(epochs=4, rate=0.1))


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 5)


@pytest.mark.parametrize("strategy", ["random", "greedy"])
def test_the_best_candidate_within_the_budget_is_returned(
    strategy: str, vgg: nn.Module, digits_task: Task
) -> None:
    ctx = context(vgg, digits_task)
    before = {name: t.clone() for name, t in vgg.state_dict().items()}
    found = EagleEye(sparsity=0.4, candidates=4, strategy=strategy).apply(vgg, ctx)
    assert all(torch.equal(t, before[name]) for name, t in vgg.state_dict().items())
    rows = ctx.record["candidates"]
    assert len(rows) == 4
    budget = 0.6 * macs(vgg, digits_task.example[:1])  # type: ignore[index]
    assert all(row["cost"] <= budget for row in rows)
    assert all(row["cost"] > 0.5 * budget for row in rows), "no more is cut than needed"
    assert len({tuple(row["cut"].items()) for row in rows}) == 4
    best = max(rows, key=lambda row: row["metric"])
    assert evaluate(found, digits_task, "validation").value == pytest.approx(best["metric"])
    assert macs(found, digits_task.example[:1]) == best["cost"]  # type: ignore[index]
    sizes = {n: m.out_channels for n, m in vgg.named_modules() if isinstance(m, nn.Conv2d)}
    for name, size in sizes.items():
        layer = found.get_submodule(name)
        assert layer.out_channels == size - best["cut"].get(name, 0)


def test_parameters_are_a_budget_too(vgg: nn.Module, digits_task: Task) -> None:
    ctx = context(vgg, digits_task)
    found = EagleEye(sparsity=0.7, target="parameters", candidates=1).apply(vgg, ctx)
    assert parameters(found) <= 0.3 * parameters(vgg)
    assert ctx.record["candidates"][0]["cost"] == parameters(found)


def test_measuring_norms_anew_leaves_every_weight_bit_for_bit(
    vgg: nn.Module, digits_task: Task
) -> None:
    found = candidate_network(vgg, [], digits_task.example, digits_task, 256)
    frozen = candidate_network(vgg, [], digits_task.example, digits_task, 0)
    weights = dict(vgg.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in found.named_parameters())
    state = dict(vgg.named_buffers())
    moved = [n for n, b in found.named_buffers() if not torch.equal(b, state[n])]
    assert len([n for n in moved if n.endswith("running_mean")]) == 6
    assert all(torch.equal(b, state[name]) for name, b in frozen.named_buffers())


def test_draws_stay_shares_and_greedy_ones_stay_near() -> None:
    generator = torch.Generator().manual_seed(0)
    far, start = draw(2000, generator), torch.full((2000,), 0.5)
    near = draw(2000, generator, start)
    for found in (far, near):
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
    assert float((near - start).abs().mean()) < 0.6 * float((far - start).abs().mean())
    assert float(far.std()) == pytest.approx(1 / 12**0.5, rel=0.05)


def test_a_budget_out_of_reach_is_told(vgg: nn.Module, digits_task: Task) -> None:
    step = EagleEye(sparsity=0.9, largest=0.3, candidates=1)
    with pytest.raises(
        ModelError, match=r"none of 50 draws saves 90% of the macs with largest=0\.3"
    ):
        step.apply(vgg, context(vgg, digits_task))
