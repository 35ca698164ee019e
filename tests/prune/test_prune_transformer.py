# SPDX-License-Identifier: Apache-2.0
"""Gate gradients against real gates; the search under a cost against all subsets."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.prune.prune_transformer import cheapest_units, gate_gradients


def test_gradients_are_those_of_gates_on_the_units() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 3)
    x = torch.randn(4, 2, 9, 9)
    gates = torch.ones(5, requires_grad=True)
    loss = second(first(x).relu() * gates.view(-1, 1, 1)).square().mean()
    wanted, slope = torch.autograd.grad(loss, (gates, second.weight))
    model = nn.Sequential(first, nn.ReLU(), second)
    (group,) = couple(model, x).groups
    found = gate_gradients(group, {"2.weight": second.weight.detach() * slope})
    assert torch.allclose(found.float(), wanted, atol=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.05, 0.6))
def test_no_choice_of_less_loss_saves_as_much(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    importance = {
        "heads": torch.rand(3, generator=generator, dtype=torch.float64),
        "neurons": torch.rand(5, generator=generator, dtype=torch.float64),
    }
    cost = {"heads": 4.0, "neurons": 1.0}
    target = share * (3 * 4 + 5)
    counts = cheapest_units(importance, cost, target)
    lost = sum(float(importance[n].sort().values[:k].sum()) for n, k in counts.items())
    saved = sum(cost[n] * k for n, k in counts.items())
    assert all(k < len(importance[n]) for n, k in counts.items())
    assert saved >= target or saved == 2 * 4 + 4
    for a, b in itertools.product(range(3), range(5)):
        other = float(importance["heads"].sort().values[:a].sum())
        other += float(importance["neurons"].sort().values[:b].sum())
        if 4 * a + b >= saved:  # to save as much costs as much
            assert other >= lost - 1e-12
