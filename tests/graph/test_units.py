# SPDX-License-Identifier: Apache-2.0
"""Numbers per weight become numbers per unit, and back, as plain loops over positions say."""

import pytest
import torch
from tests.graph.random_networks import RandomNet
from torch import Tensor

from rarefy.graph.coupling import couple
from rarefy.graph.groups import Group, Member
from rarefy.graph.units import along_axis, members, scatter_units, unit_counts, unit_sums


def by_hand(group: Group, values: dict[str, Tensor], roles: tuple[str, ...]) -> list[float]:
    """The same sums, position by position."""
    total = [0.0] * group.size
    for m in group.members:
        if m.role in roles and m.name in values:
            for place, unit in zip(m.places.tolist(), m.units.tolist(), strict=True):
                total[unit] += float(values[m.name].select(m.axis, place).double().sum())
    return total


@pytest.mark.parametrize("roles", [("out",), ("in",), ("along",), ("out", "in", "along")])
def test_sums_are_those_of_a_plain_loop(roles: tuple[str, ...]) -> None:
    for seed in range(4):
        model = RandomNet(seed).eval()
        values = {name: p.detach() ** 2 for name, p in model.named_parameters()}
        for group in couple(model, torch.randn(1, 3, 6, 6)).groups:
            found = unit_sums(group, values, roles)
            assert found.dtype is torch.float64
            assert found.tolist() == pytest.approx(by_hand(group, values, roles))
            ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
            counts = unit_counts(group, model, roles)
            assert counts.tolist() == by_hand(group, ones, roles)


PAIR = Group(
    "layer",
    torch.arange(2),
    (
        Member("layer.weight", 0, "out", torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 1])),
        Member("next.weight", 1, "in", torch.tensor([4, 5]), torch.tensor([0, 1])),
        Member("layer.bias", 0, "along", torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 1])),
    ),
)


def test_by_hand() -> None:
    weight = torch.arange(8.0).reshape(4, 2)
    values = {"layer.weight": weight, "layer.bias": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert unit_sums(PAIR, values).tolist() == [0 + 1 + 4 + 5, 2 + 3 + 6 + 7]
    assert unit_sums(PAIR, values, ("out", "along")).tolist() == [14, 24]
    assert unit_sums(PAIR, {}).tolist() == [0, 0]
    assert [m.name for m in members(PAIR)] == ["layer.weight", "layer.bias"]


def test_a_number_per_unit_spreads_over_the_positions_of_an_axis() -> None:
    found = scatter_units(PAIR, PAIR.members[1], torch.tensor([5.0, 7.0]), 7, fill=-1)
    assert found.tolist() == [-1, -1, -1, -1, 5, 7, -1]
    found = scatter_units(PAIR, PAIR.members[0], torch.tensor([True, False]), 4, fill=False)
    assert found.tolist() == [True, False, True, False]


def test_sums_over_all_axes_but_one() -> None:
    x = torch.randn(2, 3, 4)
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        assert torch.allclose(along_axis(x, axis), x.double().sum(others))
    assert torch.equal(along_axis(x[0, 0], 0), x[0, 0].double())
