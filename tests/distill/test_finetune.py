# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning, and batch norms measured anew."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.finetune import Finetune, ReestimateNorms
from rarefy.errors import TaskError
from rarefy.loops.modes import copy_state
from rarefy.step import Context
from rarefy.task import Task


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def context(examples: int = 40, batch: int = 10) -> Context:
    x = torch.randn(examples, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 1).long())
    batches = DataLoader(data, batch_size=batch)
    task = Task("toy", example=x[:2], train=batches, validation=batches)
    return Context(task, network().eval(), torch.device("cpu"), 0, {}, None)


def loss(model: nn.Module, ctx: Context) -> float:
    with torch.no_grad():
        parts = [ctx.task.loss(model.eval()(x), y) for x, y in ctx.task.train or []]
    return float(torch.stack(parts).mean())


def test_finetune_lowers_the_loss() -> None:
    ctx = context()
    before = loss(network(), ctx)
    model = Finetune(epochs=5, rate=0.05).apply(network(), ctx)
    assert loss(model, ctx) < before
    assert Finetune().needs == {"train", "labels"}
    assert len(ctx.record["training"]) == 5


def test_norms_are_the_means_over_the_calibration_batches() -> None:
    ctx, model = context(), network().train()
    with torch.no_grad():
        activations = [model[0](x) for x, _ in ctx.task.train or []]
    weights = {n: p.clone() for n, p in model.named_parameters()}
    ReestimateNorms().apply(model, ctx)
    means = torch.stack([a.mean((0, 2, 3)) for a in activations]).mean(0)
    variances = torch.stack([a.var((0, 2, 3)) for a in activations]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert model[1].momentum == 0.3
    assert not model.training
    assert not model[1].training
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_only_so_many_examples_are_used() -> None:
    first, ctx = network(), context()
    ReestimateNorms(examples=10).apply(first, ctx)
    with torch.no_grad():
        a = first[0](next(iter(ctx.task.train or []))[0])
    torch.testing.assert_close(first[1].running_mean, a.mean((0, 2, 3)))


def test_a_network_without_norms_is_left_alone() -> None:
    model, ctx = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), context()
    before = copy_state(model)
    ReestimateNorms().apply(model, ctx)
    assert all(torch.equal(t, before[n]) for n, t in copy_state(model).items())
    assert ctx.record["notes"] == ["reestimate-norms: there is no batch norm"]


def test_a_batch_of_one_has_no_spread() -> None:
    with pytest.raises(TaskError, match="calibration batch of one example"):
        ReestimateNorms().apply(network(), context(examples=21))
