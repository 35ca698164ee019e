# SPDX-License-Identifier: Apache-2.0
"""Split channels compute the same, halves round to the whole, and ranges shrink."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rarefy.quantize.split_outliers import SplitOutliers, halves, split_channel
from rarefy.step import Context
from rarefy.task import Task


@given(st.floats(-50, 50), st.floats(0.01, 3))
def test_halves_round_to_the_whole(w: float, step: float) -> None:
    whole = torch.tensor(w, dtype=torch.float64)
    low, high = halves(whole, step)
    assert float(low + high) == pytest.approx(w, abs=1e-9)
    u = w / step
    if abs(u - round(u)) < 0.499:  # at a border both neighbours are right
        assert int((low / step).round() + (high / step).round()) == round(u)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[2].weight[4, 7] *= 20
        model[6].weight[0, 9] = 4.0
        model[8].weight[2, 3] = -3.0
    return model


def context_of(model: nn.Module) -> Context:
    x = torch.randn(2, 3, 6, 6)
    return Context(Task("random", x, labelled=False), model, torch.device("cpu"))


def test_the_network_computes_the_same_with_smaller_weights() -> None:
    model = network()
    exact, context = copy.deepcopy(model), context_of(model)
    found = SplitOutliers(ratio=0.1).apply(model, context)
    x = torch.randn(8, 3, 6, 6)
    assert torch.allclose(found(x), exact(x), atol=1e-4)
    assert context.record["split"] == {"0 -> 2": [7], "2 -> 6": [2], "6 -> 8": [3]}
    for name in ("2", "6", "8"):
        before = float(exact.get_submodule(name).weight.detach().abs().max())
        now = float(found.get_submodule(name).weight.detach().abs().max())
        assert now <= 0.52 * before
    assert (found[0].out_channels, found[2].in_channels) == (11, 11)
    assert (found[2].out_channels, found[6].in_features) == (9, 36)
    assert found[6].weight.shape == (13, 36)


def test_groups_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)).eval()
    context = context_of(model)
    SplitOutliers(ratio=0.5).apply(model, context)
    assert context.record["split"] == {}


def test_a_channel_split_twice_is_a_quarter() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(2, 4)
    x = torch.randn(5, 3)
    before = second(first(x).relu())
    for _ in range(2):
        split_channel(first, second, 1, 0.0)
    assert torch.allclose(second(first(x).relu()), before, atol=1e-6)
    assert torch.equal(second.weight[:, 1] * 2, second.weight[:, 2])
