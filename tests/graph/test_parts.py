# SPDX-License-Identifier: Apache-2.0
"""Splits, chunks and slices: what the code counts is mended, tied or kept."""

from collections.abc import Callable

import pytest
import torch
from tests.graph.cuts import halves_and_agrees, seen
from torch import Tensor, nn

from rarefy.graph.coupling import couple

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """Eight channels in two parts, which two layers read."""

    def __init__(
        self, how: Callable[["Parts", Tensor], tuple[Tensor, Tensor]], first: int = 4
    ) -> None:
        super().__init__()
        self.how, self.first, self.width = how, first, 8
        self.sizes, self.pair = [first, 8 - first], (first, 8 - first)
        self.wide = nn.Linear(5, 8)
        self.a, self.b = nn.Linear(first, 2), nn.Linear(8 - first, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.how(self, self.wide(x))
        return self.a(a) + self.b(b)


MENDED: dict[str, Callable[[Parts, Tensor], tuple[Tensor, ...]]] = {
    "split by a list": lambda m, t: t.split(m.sizes, 1),
    "split by a tuple": lambda m, t: t.split(m.pair, dim=1),
    "split by an attribute and a size": lambda m, t: t.split([m.first, t.shape[1] - m.first], 1),
    "slices": lambda m, t: (t[:, : m.first], t[:, m.first :]),
    "slices of an ellipsis": lambda m, t: (t[..., : m.first], t[..., m.first :]),
    "narrow": lambda m, t: (t.narrow(1, 0, m.first), t.narrow(1, m.first, m.sizes[1])),
}


@pytest.mark.parametrize("name", MENDED)
def test_sizes_that_are_attributes_are_mended_part_by_part(name: str) -> None:
    model = Parts(MENDED[name], first=6)
    expected = {
        "wide": (6, {"wide.weight:0": 6, "wide.bias:0": 6, "a.weight:1": 6}),
        "wide#1": (2, {"wide.weight:0": 2, "wide.bias:0": 2, "b.weight:1": 2}),
    }
    assert seen(model, X) == expected
    halves_and_agrees(model, X)
    assert model.wide.weight.shape == (4, 5)
    assert (model.a.in_features, model.b.in_features) == (3, 1)


def test_a_list_stays_a_list_and_a_tuple_a_tuple() -> None:
    model = Parts(lambda m, t: t.split(m.sizes if t.shape[1] else m.pair, 1), first=6)
    halves_and_agrees(model, X)
    assert model.sizes == [3, 1]
    assert model.pair == (6, 2)  # nothing was made of it
    model = Parts(MENDED["split by a tuple"], first=6)
    halves_and_agrees(model, X)
    assert model.pair == (3, 1)


TIED: dict[str, Callable[[Parts, Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda m, t: t.chunk(2, 1),
    "chunk by name": lambda m, t: torch.chunk(t, chunks=2, dim=-1),
    "split by one attribute": lambda m, t: t.split(m.first, 1),
    "half of an attribute": lambda m, t: t.split(m.width // 2, 1),
    "half of the size": lambda m, t: t.split(t.shape[1] // 2, dim=1),
}


@pytest.mark.parametrize("name", TIED)
def test_parts_of_one_size_lose_positions_together(name: str) -> None:
    model = Parts(TIED[name])
    touched = {"wide.weight:0": 8, "wide.bias:0": 8, "a.weight:1": 4, "b.weight:1": 4}
    assert seen(model, X) == {"wide": (4, touched)}
    halves_and_agrees(model, X)
    assert model.wide.weight.shape == (4, 5)


KEPT: dict[str, Callable[[Parts, Tensor], tuple[Tensor, ...]]] = {
    "split by numbers": lambda m, t: t.split([4, 4], 1),
    "split by a number": lambda m, t: t.split(4, 1),
    "slices by numbers": lambda m, t: (t[:, :4], t[:, 4:]),
    "narrow by numbers": lambda m, t: (t.narrow(1, 0, 4), t.narrow(1, 4, 4)),
}


@pytest.mark.parametrize("name", KEPT)
def test_numbers_in_the_code_keep_what_they_count(name: str) -> None:
    assert seen(Parts(KEPT[name]), X) == {}


def test_slices_at_half_of_an_attribute_stay_right() -> None:
    model = Parts(lambda m, t: (t[:, : m.width // 2], t[:, m.width // 2 :]))
    coupling = couple(model, X)
    assert [g.size for g in coupling.groups] == [4, 4]
    halves_and_agrees(model, X)
    assert model.width == 4


class Gate(nn.Module):
    """A gated linear unit: one half of the channels multiplies the other."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.wide(x).chunk(2, dim=1)
        return self.head(value * gate.sigmoid())


def test_a_gate_goes_with_what_it_gates() -> None:
    model, x = Gate(), torch.randn(2, 3, 4, 4)
    touched = {"wide.weight:0": 8, "wide.bias:0": 8, "head.weight:1": 4}
    coupling = couple(model, x)
    (group,) = coupling.groups
    assert (group.size, seen(model, x)) == (4, {"wide": (4, touched)})
    wide = next(m for m in group.members if m.name == "wide.weight")
    for unit in range(4):
        assert wide.places[wide.units == unit].tolist() == [unit, unit + 4]
    halves_and_agrees(model, x)


def test_a_position_that_is_named_keeps_its_axis() -> None:
    class Named(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.a, self.b = how, nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + y[:, 0:1] if self.how == "slice" else self.b(y) + y[:, 0, None]

    for how in ("slice", "number"):
        assert seen(Named(how), X) == {}


class Behind(nn.Module):
    """Takes the last channels, as many as an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.w = 2, nn.Linear(5, 8)
        self.a, self.b = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.w(x)
        return self.a(y[:, : -self.n]) + self.b(y[:, -self.n :])


def test_bounds_from_behind_count_what_follows() -> None:
    model = Behind()
    halves_and_agrees(model, torch.randn(3, 5))
    assert model.n == 1
    assert model.a.weight.shape == (2, 3)


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.glu(self.a(x), 1))


def test_halves_that_gate_each_other_are_cut_together() -> None:
    model = Halved()
    halves_and_agrees(model, torch.randn(2, 3, 4, 4))
    assert model.a.weight.shape[0] == 4
