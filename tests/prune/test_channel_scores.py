# SPDX-License-Identifier: Apache-2.0
"""Scores of units against brute force and closed forms."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rarefy.graph.coupling import couple
from rarefy.prune import channel_scores as score


class Residual(nn.Module):
    """Two convolutions whose outputs are added, so that their channels are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.a(x) + self.b(x)[..., 1:-1, 1:-1]).relu().mean((2, 3)))


def test_a_unit_holds_the_filters_of_all_coupled_layers() -> None:
    net = Residual()
    (group,) = couple(net, torch.randn(2, 3, 5, 5)).groups
    w = score.filters(group, dict(net.named_parameters()))
    assert w.shape == (6, 27 + 3)
    for i, row in enumerate(w):
        own = [net.a.weight[i].detach(), net.b.weight[i].detach()]
        total = sum(float(t.double().abs().sum()) for t in own)
        assert float(row.abs().sum()) == pytest.approx(total, abs=1e-12)
        assert float(score.l1(w)[i]) == pytest.approx(total, abs=1e-12)
        assert float(score.l2(w)[i] ** 2) == pytest.approx(
            sum(float(t.double().square().sum()) for t in own), rel=1e-12
        )
    only = score.filters(group, {"a.weight": net.a.weight})
    assert torch.equal(only, net.a.weight.detach().double().flatten(1))


def test_units_of_several_channels_have_all_of_them() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(72, 2)
    )
    groups = couple(net, torch.randn(2, 3, 5, 5)).groups
    grouped = next(g for g in groups if g.size == 4)
    w = score.filters(grouped, {n: torch.ones_like(p) for n, p in net.named_parameters()})
    rows = sum(int((m.role == "out") * len(m.places)) for m in grouped.members)
    assert w.shape[0] == 4
    assert int(w.sum()) >= rows  # two output channels a unit and more, every weight counted once
    assert len(w.sum(1).unique()) == 1


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_geometric_median_is_the_sum_of_distances(units: int, n: int, seed: int) -> None:
    w = torch.randn(units, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [sum(float((a - b).norm()) for b in w) for a in w]
    assert torch.allclose(score.geometric_median(w), torch.tensor(expected, dtype=torch.float64))


def test_the_copy_of_a_filter_is_the_first_to_go() -> None:
    w = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [3.3, 3.3]], dtype=torch.float64)
    assert int(score.geometric_median(w).argmin()) == 3  # in the middle of the others
    assert int(score.l2(w).argmin()) == 0


def test_fisher_squares_examples_before_they_can_cancel() -> None:
    opposite = torch.tensor([[2.0, 1.0], [-2.0, 1.0]])
    assert score.fisher(opposite).tolist() == [4.0, 1.0]
    assert (0.5 * opposite.sum(0).square()).tolist() == [0.0, 2.0]  # the square of the sum


def test_fisher_of_softmax_regression_by_masks_has_its_closed_form() -> None:
    """The expected square of an example's slope by input masks is diag(x) Wᵀ (diag p - p pᵀ) W diag(x)."""
    torch.manual_seed(0)
    w, x = torch.randn(4, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    logits = F.linear(x * mask, w)
    p = logits.softmax(1)[0].detach()
    total = torch.zeros(3, dtype=torch.float64)
    for y, probability in enumerate(p):
        loss = F.cross_entropy(logits, torch.tensor([y]))
        (slope,) = torch.autograd.grad(loss, mask, retain_graph=True)
        total += probability * score.fisher(slope)
    middle = torch.diag(p) - p[:, None] * p
    exact = 0.5 * torch.diag(torch.diag(x[0]) @ w.T @ middle @ w @ torch.diag(x[0]))
    assert torch.allclose(total, exact)


def test_apoz_counts_zeros() -> None:
    x = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[2.0, 3.0], [0.0, 4.0]]])  # (B, channels, n)
    assert score.positive_share(x).tolist() == [0.75, 0.25]


def test_ranks_of_maps() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, 0] = torch.eye(4)
    maps[0, 1] = torch.ones(4, 4)
    assert score.mean_ranks(maps).tolist() == [4.0, 0.5, 0.0]


def test_normalised_groups_have_the_unit_they_were_given() -> None:
    s = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for scale, how in itertools.product((1.0, 1e-7), ("mean", "max", "norm")):
        found = score.normalise(scale * s, how)
        size = {"mean": found.mean(), "max": found.max(), "norm": found.norm()}[how]
        assert float(size) == pytest.approx(1)
    assert score.normalise(s, "none") is s
    assert not score.normalise(torch.zeros(3), "mean").any()
