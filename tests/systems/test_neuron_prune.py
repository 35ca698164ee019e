# SPDX-License-Identifier: Apache-2.0
"""Neurons of linear layers: silent ones go exactly, constant ones move into biases, costs fall."""

import copy

import pytest
import torch
from torch import nn

from rarefy.measure.counts import macs
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)


@pytest.fixture
def setting() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [torch.randn(16, 6) for _ in range(3)]
    return net.eval(), Task("none", example=batches[0], calibration=batches, labelled=False)


@pytest.mark.parametrize("criterion", ["activation", "activation-norm"])
def test_silent_neurons_go_without_a_trace(criterion: str, setting: tuple[nn.Module, Task]) -> None:
    net, task = setting
    with torch.no_grad():
        net[0].weight[[1, 4]] = 0  # type: ignore[index,union-attr]
        net[0].bias[[1, 4]] = -0.3  # type: ignore[index,union-attr]
        before = net(task.example)
    step = PruneChannels(criterion=criterion, sparsity=0.2, allocation="local", layers="0")  # type: ignore[arg-type]
    found = step.apply(copy.deepcopy(net), context(net, task))
    stays = [i for i in range(10) if i not in (1, 4)]
    assert torch.equal(found[0].weight, net[0].weight[stays])  # type: ignore[index,union-attr]
    assert torch.equal(found[2].weight, net[2].weight[:, stays])  # type: ignore[index,union-attr]
    assert torch.allclose(found(task.example), before, atol=1e-6)


def test_constant_neurons_move_into_the_next_bias(setting: tuple[nn.Module, Task]) -> None:
    """y = W h + b with h_i = c: without i, b + c W[:, i] gives the same; the layer may shrink as well."""
    net, task = setting
    with torch.no_grad():
        net[0].weight[3] = 0  # type: ignore[index,union-attr]
        net[0].bias[3] = 0.01  # type: ignore[index,union-attr]
        net[2].weight[5] = 0  # type: ignore[index,union-attr]
        net[2].bias[5] = 0.02  # type: ignore[index,union-attr]
        before = net(task.example)
    fields = {"criterion": "activation-norm", "sparsities": {"0": 0.1, "2": 0.13}}
    plain = PruneChannels(**fields).apply(copy.deepcopy(net), context(net, task))  # type: ignore[arg-type]
    mended = PruneChannels(**fields, repair="bias").apply(copy.deepcopy(net), context(net, task))  # type: ignore[arg-type]
    assert mended[0].out_features == 9  # type: ignore[index,union-attr]
    assert mended[2].out_features == 7  # type: ignore[index,union-attr]
    rest = [i for i in range(8) if i != 5]
    expected = (net[2].bias + 0.01 * net[2].weight[:, 3])[rest]  # type: ignore[index,union-attr,operator]
    assert torch.allclose(mended[2].bias, expected, atol=1e-6)  # type: ignore[index,union-attr]
    with torch.no_grad():
        assert torch.allclose(mended(task.example), before, atol=1e-5)
        assert not torch.allclose(plain(task.example), before, atol=1e-4)


def test_a_layer_without_a_bias_gets_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False)).eval()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 1e-3
        x = torch.randn(8, 2, 5, 5)
        before = net(x)
    task = Task("none", example=x, calibration=[x], labelled=False)
    step = PruneChannels(criterion="activation", sparsity=0.25, repair="bias")
    found = step.apply(copy.deepcopy(net), context(net, task))
    assert found[0].out_channels == 3  # type: ignore[index,union-attr]
    shift = 1e-3 * net[2].weight[:, 2].sum((1, 2))
    assert torch.allclose(found[2].bias, shift, atol=1e-8)  # type: ignore[index,union-attr]
    assert torch.allclose(found(x), before, atol=1e-6)


def test_repair_halves_what_is_lost(setting: tuple[nn.Module, Task]) -> None:
    net, task = setting
    with torch.no_grad():
        net[0].bias.add_(4.0)  # type: ignore[index,union-attr,operator]
        before = net(task.example)

        def lost(repair: str) -> float:
            step = PruneChannels(criterion="random", layers="0", repair=repair)  # type: ignore[arg-type]
            found = step.apply(copy.deepcopy(net), context(net, task))
            return float((found(task.example) - before).square().mean())

        assert lost("bias") < 0.5 * lost("none")


def test_the_recipe_works_on_linear_layers_alone(digits: tuple[nn.Module, Task]) -> None:
    from rarefy.loops.fit import fit
    from rarefy.loops.optimise import Training

    _, task = digits
    torch.manual_seed(0)
    layers = [nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 40), nn.ReLU(), nn.Linear(40, 10)]
    net = nn.Sequential(nn.Flatten(), *layers)
    fit(net, task, Training(epochs=6, rate=0.1))
    before, work = evaluate(net, task).value, macs(net, task.example)
    ctx, model = context(net, task), copy.deepcopy(net)
    for step in load_recipe("neuron-prune").steps:
        model = step.apply(model, ctx)
    assert work == 64 * 80 + 80 * 40 + 40 * 10
    assert macs(model, task.example) == 64 * 40 + 40 * 20 + 20 * 10
    assert evaluate(model, task).value >= before - 0.04
