# SPDX-License-Identifier: Apache-2.0
"""Counts of units: exact shares, limits that hold, families that stay even, savings that are real."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.measure.counts import macs, parameters
from rarefy.prune import channel_allocation as allocation
from rarefy.prune.channel_allocation import Limits


def network(*widths: int) -> tuple[nn.Module, Coupling]:
    """A chain of linear layers with so many hidden neurons, and its coupling."""
    sizes = (5, *widths, 3)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    return net, couple(net, torch.randn(2, 5))


def scores_of(groups: tuple[Group, ...], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=draw, dtype=torch.float64) for g in groups}


@given(st.lists(st.integers(2, 40), min_size=1, max_size=4), st.floats(0, 0.9), st.integers(0, 99))
def test_the_least_important_of_all_go(widths: list[int], share: float, seed: int) -> None:
    _, coupling = network(*widths)
    groups, scores, limits = coupling.groups, scores_of(coupling.groups, seed), Limits()
    number = round(share * sum(widths))
    counts = allocation.global_counts(groups, scores, number, limits)
    assert sum(counts.values()) == min(number, sum(limits.most(g) for g in groups))
    assert all(counts[g.name] <= int(0.9 * g.size + 1e-9) < g.size for g in groups)
    cuts = {g.name: units for g, units in allocation.lowest_units(groups, scores, counts)}
    stays = {
        g.name: [
            u for u in range(g.size) if u not in set(cuts.get(g.name, torch.empty(0)).tolist())
        ]
        for g in groups
    }
    gone = [float(scores[n][u]) for n, units in cuts.items() for u in units.tolist()]
    for g in (
        groups
    ):  # whatever ranks below one that went has gone too, but where the group is at its limit
        if counts[g.name] < limits.most(g):
            assert min(scores[g.name][stays[g.name]]) >= max(gone, default=0.0)


@given(st.integers(2, 200), st.floats(0.01, 0.99))
def test_local_shares_are_exact_within_the_limits(size: int, share: float) -> None:
    _, coupling = network(size)
    (group,) = coupling.groups
    limits = Limits({group.name: size}, largest=0.8)
    taken = allocation.local_counts([group], {group.name: share}, limits)[group.name]
    assert taken == min(round(share * size), int(0.8 * size + 1e-9), size - 1)


def test_what_is_gone_counts_in_the_next_round() -> None:
    net, coupling = network(20)
    (group,) = coupling.groups
    limits = Limits({group.name: 20})
    first = allocation.local_counts([group], {group.name: 0.25}, limits)[group.name]
    cut(net, coupling, [(group, torch.arange(first))], torch.randn(2, 5))
    (smaller,) = couple(net, torch.randn(2, 5)).groups
    assert smaller.size == 15
    assert allocation.local_counts([smaller], {smaller.name: 0.5}, limits)[smaller.name] == 5
    assert limits.most(smaller) == 13  # 18 of the first 20


@pytest.mark.parametrize(
    ("size", "share", "wanted"), [(64, 0.5, 32), (64, 0.3, 48), (20, 0.5, 8), (6, 0.5, 6)]
)
def test_channels_that_stay_are_a_multiple(size: int, share: float, wanted: int) -> None:
    _, coupling = network(size)
    (group,) = coupling.groups
    limits = Limits(round_to=8)
    counts = allocation.local_counts([group], {group.name: share}, limits)
    legal = allocation.legal_counts(coupling, [group], counts, limits)
    assert size - legal.get(group.name, 0) == wanted


def test_units_of_two_channels_count_twice_for_multiples() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, groups=1), nn.Conv2d(32, 32, 1, groups=16), nn.Conv2d(32, 2, 1)
    )
    coupling = couple(net, torch.randn(1, 3, 6, 6))
    group = next(g for g in coupling.groups if allocation.width(g) == 2)
    counts = {group.name: round(0.45 * group.size)}
    legal = allocation.legal_counts(coupling, [group], counts, Limits(round_to=8))
    assert 2 * (group.size - legal[group.name]) % 8 == 0


class Widths(nn.Module):
    """The second half's width is computed from the first's, so both shrink by the same share."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.a, self.out = nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y.view(len(x), self.heads, y.shape[1] // self.heads).relu().flatten(1))


def test_legal_counts_can_be_cut() -> None:
    net = Widths()
    x = torch.randn(2, 5)
    coupling = couple(net, x)
    wanted = {g.name: round(0.4 * g.size) for g in coupling.groups}
    legal = allocation.legal_counts(coupling, coupling.groups, wanted, Limits())
    cuts = allocation.lowest_units(coupling.groups, scores_of(coupling.groups), legal)
    outcome = cut(net, coupling, cuts, x)
    assert outcome.cut == legal
    assert not outcome.spared


class Convolutions(nn.Module):
    """A strided, a grouped and a transposed convolution before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 12, 3, padding=1)
        self.c, self.fc = nn.ConvTranspose2d(12, 6, 2, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x).relu()).relu())
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("per", ["parameters", "macs"])
def test_savings_are_what_taking_one_unit_saves(per: str) -> None:
    x = torch.randn(1, 3, 9, 9)
    count = parameters if per == "parameters" else lambda m: macs(m, x)
    for number in range(3):
        net = Convolutions().eval()
        coupling = couple(net, x)
        group = coupling.groups[number]
        promised = allocation.savings(net, coupling.groups, per, x)[group.name]
        before = count(net)
        cut(net, coupling, [(group, torch.tensor([1]))], x)
        assert before - count(net) == promised


def test_cheap_units_must_be_worth_less_to_stay() -> None:
    _, coupling = network(4, 8)
    scores = {g.name: torch.ones(g.size, dtype=torch.float64) for g in coupling.groups}
    dear, cheap = (g.name for g in coupling.groups)
    found = allocation.ranked(coupling.groups, scores, "global", "mean", {dear: 10.0, cheap: 2.0})
    assert found[dear].tolist() == [0.1] * 4
    assert found[cheap].tolist() == [0.5] * 8
    lamp = allocation.ranked(coupling.groups, scores_of(coupling.groups), "lamp", "none", {})
    assert all(float(s.max()) == 1 for s in lamp.values())  # so that one of each group stays
