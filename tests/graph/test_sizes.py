# SPDX-License-Identifier: Apache-2.0
"""Sizes in views, expansions and new tensors: mended if an attribute says them, kept if the code does."""

from collections.abc import Callable

import pytest
import torch
from tests.graph.cuts import cut_half, halves_and_agrees, seen
from torch import Tensor, nn

from rarefy.graph.coupling import couple

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


class Viewed(nn.Module):
    """Eight channels seen as heads and back; attributes say how many and how large."""

    def __init__(self, there: Callable[["Viewed", Tensor], Tensor]) -> None:
        super().__init__()
        self.there, self.heads, self.size, self.width = there, 4, 2, 8
        self.shape = (4, 2)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.there(self, self.first(x)).tanh()
        return self.last(y.flatten(-2))


VIEWS: dict[str, Callable[[Viewed, Tensor], Tensor]] = {
    "attributes": lambda m, t: t.view(2, 4, m.heads, m.size),
    "a tuple": lambda m, t: t.view(t.shape[:2] + m.shape),
    "one open": lambda m, t: t.reshape(t.shape[0], t.shape[1], m.heads, -1),
    "computed": lambda m, t: t.reshape(*t.shape[:2], m.heads, m.width // m.heads),
    "from the size": lambda m, t: t.reshape(2, 4, m.heads, t.size(-1) // m.heads),
    "unflatten": lambda m, t: t.unflatten(-1, (m.heads, m.size)),
    "unflatten by name": lambda m, t: t.unflatten(dim=2, sizes=(m.heads, -1)),
    "torch.reshape": lambda m, t: torch.reshape(t, (2, 4, m.heads, m.size)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_whole_heads_go_and_attributes_are_mended(name: str) -> None:
    model = Viewed(VIEWS[name])
    touched = {"first.weight:0": 8, "first.bias:0": 8, "last.weight:1": 8}
    assert seen(model, X) == {"first": (4, touched)}
    halves_and_agrees(model, X)
    assert model.first.weight.shape == (4, 5)
    assert model(X).shape == (2, 4, 3)


def test_of_heads_that_the_code_counts_as_a_number_equal_parts_go() -> None:
    model = Viewed(lambda m, t: t.view(2, 4, 4, m.size))
    touched = {"first.weight:0": 8, "first.bias:0": 8, "last.weight:1": 8}
    assert seen(model, X) == {"first": (2, touched)}
    halves_and_agrees(model, X)
    assert model.size == 1


def test_two_numbers_keep_everything_and_are_named_in_the_report() -> None:
    model = Viewed(lambda m, t: t.view(2, 4, 4, 2))
    coupling = couple(model, X)
    assert coupling.groups == ()
    assert coupling.barriers == {"view with sizes written as numbers": 1}


def test_a_number_that_no_channel_meets_keeps_nothing() -> None:
    model = Viewed(lambda m, t: t.view(2, 2, 2, 8).view(2, 4, m.heads, m.size))
    assert seen(model, X) == {}
    model = Viewed(lambda m, t: t.view(2, 2, 2, m.width).view(2, 4, m.heads, m.size))
    assert next(iter(seen(model, X).values()))[0] == 4
    _, outcome = cut_half(model, X)
    assert outcome.cut == {"first": 2}
    assert (model.width, model.heads * model.size) == (4, 4)


class Grown(nn.Module):
    """A constant, or copies of something small, of a size that is an attribute."""

    def __init__(self, make: Callable[["Grown", Tensor], Tensor]) -> None:
        super().__init__()
        self.make, self.width = make, 8
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.make(self, x))


CONSTANTS: dict[str, Callable[[Grown, Tensor], Tensor]] = {
    "zeros": lambda m, x: torch.zeros(4, m.width),
    "ones": lambda m, x: torch.ones((m.width,)),
    "full": lambda m, x: torch.full((4, m.width), 0.5),
    "new_zeros": lambda m, x: x.new_zeros(2, 4, m.width),
    "new_ones": lambda m, x: x.new_ones((4, m.width)),
    "new_full": lambda m, x: x.new_full((m.width,), 2.0),
    "expand": lambda m, x: x.mean((1, 2), keepdim=True).expand(2, 1, m.width),
    "repeat_interleave": lambda m, x: x[..., :1].repeat_interleave(m.width, dim=-1),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_and_copies_shrink_with_what_they_are_added_to(name: str) -> None:
    model = Grown(CONSTANTS[name])
    touched = {"first.weight:0": 8, "first.bias:0": 8, "last.weight:1": 8}
    assert seen(model, X) == {"first": (8, touched)}
    before = model.last.weight.detach().clone()
    _, outcome = cut_half(model, X)
    assert outcome.cut == {"first": 4}
    assert model.width == 4
    assert model.make(model, X).shape[-1] == 4
    columns = [any(torch.equal(c, old) for old in before.t()) for c in model.last.weight.t()]
    assert all(columns)


def test_a_constant_of_a_number_keeps_what_it_is_added_to() -> None:
    assert seen(Grown(lambda m, x: torch.ones(8)), X) == {}


def test_one_attribute_for_two_groups_ties_their_sizes_not_their_units() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.size = 4, 2
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).view(2, 4, self.heads, self.size).tanh().flatten(-2)
            return self.c(self.b(y).view(2, 4, self.heads, self.size).tanh().flatten(-2))

    model = Twice()
    coupling = couple(model, X)
    assert [g.name for g in coupling.groups] == ["a", "b"]
    assert len({g.family for g in coupling.groups}) == 1
    assert coupling.even({"a": 2}) == {"a": 1, "b": 1}
    halves_and_agrees(model, X)
    assert model.heads == 2


class Correlated(nn.Module):
    """Products of all pairs of rows, divided by the root of how many channels they have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.rows, self.last = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rows(self.hidden(x).relu())
        _, _, channels = y.shape
        return self.last(y @ y.transpose(1, 2) / torch.sqrt(torch.tensor(channels)))


def test_channels_whose_number_is_a_value_stay() -> None:
    x = torch.randn(2, 5, 4)
    assert seen(Correlated(), x).keys() == {"hidden"}
    halves_and_agrees(Correlated(), x)
