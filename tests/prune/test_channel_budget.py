# SPDX-License-Identifier: Apache-2.0
"""The smallest cut that meets a budget; probes leave no trace."""

import copy

import pytest
import torch
from torch import nn

from rarefy.errors import ModelError
from rarefy.graph.coupling import couple
from rarefy.measure.counts import parameters
from rarefy.prune import channel_budget as budget
from rarefy.prune.channel_allocation import Cuts


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)
    )


def test_no_smaller_cut_would_do(net: nn.Module) -> None:
    x = torch.randn(2, 6)
    coupling = couple(net, x)
    group = coupling.groups[0]
    before = {n: t.clone() for n, t in net.state_dict().items()}
    probes = []

    def cuts_at(level: int) -> Cuts:
        probes.append(level)
        return [(group, torch.arange(level))] if level else []

    for share in (0.9, 0.613, 0.3):
        limit = share * parameters(net)
        cuts, cost = budget.smallest_cut(net, coupling, cuts_at, 39, parameters, limit)
        level = len(cuts[0][1])
        each = 6 + 1 + 30  # what a neuron of the first layer has
        assert cost == parameters(net) - level * each <= limit
        assert parameters(net) - (level - 1) * each > limit
    assert len(probes) < 3 * 20
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net[0].out_features == 40


def test_a_budget_out_of_reach_says_what_can_be_reached(net: nn.Module) -> None:
    coupling = couple(net, torch.randn(2, 6))
    group = coupling.groups[0]
    with pytest.raises(ModelError, match="the largest cut leaves .* is asked for"):
        budget.smallest_cut(
            net, coupling, lambda n: [(group, torch.arange(n))] if n else [], 20, parameters, 10
        )
    assert net[0].out_features == 40


def test_an_error_in_a_probe_puts_everything_back(net: nn.Module) -> None:
    coupling = couple(net, torch.randn(2, 6))

    def interrupted() -> None:
        with budget.cut_for_a_while(net, coupling, [(coupling.groups[0], torch.arange(7))]):
            assert net[0].out_features == 33
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert net[0].weight.shape == (40, 6)


def test_latency_is_a_share_of_the_network_as_it_came(net: nn.Module) -> None:
    x = torch.randn(2, 6)
    cost = budget.cost_of("latency", net, x)
    assert cost(copy.deepcopy(net)) == 1.0  # the same program is as fast
    other = copy.deepcopy(net)
    other[0].weight.data.mul_(2)  # type: ignore[index,union-attr,operator]
    assert 0 < cost(other) < 100
    assert budget.cost_of("macs", net, x)(net) == 6 * 40 + 40 * 30 + 30 * 3


class Picky(nn.Module):
    """Refuses any width but its own, so that no cut of its first layer can be proven."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if len(x[0].detach().tolist()) != 8:
            raise ValueError("eight, please")
        return self.c(self.b(x).relu())


def test_what_cannot_be_proven_is_named_and_the_rest_goes() -> None:
    net, x = Picky(), torch.randn(2, 6)
    coupling = couple(net, x)
    cuts = [(g, torch.arange(g.size // 2)) for g in coupling.groups]
    reasons = budget.unprovable(net, cuts, x)
    assert list(reasons) == ["a"]
    assert "eight, please" in reasons["a"]
    assert net.a.out_features == 8
