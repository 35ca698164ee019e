# SPDX-License-Identifier: Apache-2.0
"""Merging is exact for linear neurons, never worse than deleting, and begins with the cheapest pair."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.loops.statistics import Covariance
from rarefy.prune.merge_neurons import MergeNeurons, merge, regress
from rarefy.step import Context
from rarefy.task import Task


def regression_of(Y: Tensor):  # type: ignore[no-untyped-def]
    moments = Covariance(axis=1)
    moments.update(Y)
    return regress(moments.mean, moments.covariance())


def test_a_linear_neuron_is_merged_without_a_trace() -> None:
    torch.manual_seed(0)
    Y = torch.randn(500, 6, dtype=torch.float64)
    Y[:, 4] = -1.5 * Y[:, 1] + 0.7
    W = torch.randn(3, 6, dtype=torch.float64)
    merged = W.clone()
    pairs, (shift,) = merge([merged], [torch.arange(6).view(6, 1)], [regression_of(Y)], 1)
    assert set(pairs[0]) == {1, 4}
    assert torch.allclose(Y @ merged.mT + shift, Y @ W.mT, atol=1e-10)
    assert not merged[:, pairs[0][1]].any()


def test_no_merger_is_worse_than_deleting() -> None:
    torch.manual_seed(0)
    Y = torch.randn(300, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    W, fit = torch.randn(4, 5, dtype=torch.float64), regression_of(Y)
    for i in range(5):
        for j in set(range(5)) - {i}:
            deleted = (Y[:, j, None] * W[:, j]).square().sum()
            off = Y[:, j] - fit.slope[i, j] * Y[:, i] - fit.offset[i, j]
            merged = (off[:, None] * W[:, j]).square().sum()
            assert merged <= deleted * (1 + 1e-9)
            assert torch.allclose(off.square().mean(), fit.residual[i, j])


def test_the_cheapest_pair_goes_first() -> None:
    torch.manual_seed(0)
    Y = torch.randn(300, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    W = torch.randn(4, 8, dtype=torch.float64)
    fit, columns, current = regression_of(Y), torch.arange(8).view(8, 1), W.clone()
    alive = set(range(8))
    pairs, _ = merge([W.clone()], [columns], [fit], 5)
    for i, j in pairs:
        costs = {
            (a, b): float(fit.residual[a, b] * current[:, b].square().sum())
            for a in alive
            for b in alive - {a}
        }
        assert costs[i, j] <= min(costs.values()) * (1 + 1e-12)
        current[:, i] += fit.slope[i, j] * current[:, j]
        alive.remove(j)


def test_constants_move_into_the_bias() -> None:
    torch.manual_seed(0)
    Y = torch.randn(100, 3, dtype=torch.float64)
    Y[:, 1] = 4.0
    W = torch.randn(2, 3, dtype=torch.float64)
    merged = W.clone()
    pairs, (shift,) = merge([merged], [torch.arange(3).view(3, 1)], [regression_of(Y)], 1)
    assert pairs[0][1] == 1
    assert torch.allclose(shift, 4 * W[:, 1])


class Doubled(nn.Module):
    """Half of the hidden neurons are multiples of the others behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 24), nn.Linear(24, 10)
        with torch.no_grad():
            self.fc1.weight[12:] = 2.5 * self.fc1.weight[:12]
            self.fc1.bias[12:] = 2.5 * self.fc1.bias[:12]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.mark.parametrize("biased", [True, False])
def test_twelve_of_twenty_four_go_for_nothing(biased: bool, digits_task: Task) -> None:
    torch.manual_seed(0)
    model = Doubled().eval()
    if not biased:  # mergers leave constants, for which a bias is made
        model.fc2.bias = None
        with torch.no_grad():
            model.fc1.bias[3], model.fc1.weight[3] = 1.0, 0.0
            model.fc1.bias[15], model.fc1.weight[15] = 2.5, 0.0
    x = digits_task.example
    before = model(x).detach()
    context = Context(digits_task, copy.deepcopy(model), torch.device("cpu"))
    after = MergeNeurons(sparsity=0.5).apply(model, context)
    assert after.fc1.weight.shape == (12, 64)
    assert after.fc2.bias is not None
    assert torch.allclose(after(x), before, atol=1e-5 * float(before.abs().max()))
