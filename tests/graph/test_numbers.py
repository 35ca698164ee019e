# SPDX-License-Identifier: Apache-2.0
"""Numbers compute as integers do, and again with other values of what they were made of."""

import copy
import operator
import pickle
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rarefy.graph.numbers import Attribute, Number, Source, plain, remembering

NAMES = "abc"
OPERATORS: list[Callable[[int, int], int]] = [
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
]  # fmt: skip
Tree = Any

TREES: st.SearchStrategy[Tree] = st.recursive(
    st.one_of(st.sampled_from(NAMES), st.integers(-9, 9)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(OPERATORS), inner, inner), st.tuples(st.just(operator.neg), inner)
    ),
    max_leaves=12,
)
VALUES = st.fixed_dictionaries({name: st.integers(-20, 20) for name in NAMES})


def value_of(tree: Tree, values: dict[str, Any]) -> Any:
    """An expression with names replaced by values."""
    if isinstance(tree, str):
        return values[tree]
    if isinstance(tree, int):
        return tree
    function, *operands = tree
    return function(*(value_of(operand, values) for operand in operands))


def names_in(tree: Tree) -> set[str]:
    """The names that an expression holds."""
    if isinstance(tree, tuple):
        return set().union(*(names_in(operand) for operand in tree[1:]))
    return {tree} if isinstance(tree, str) else set()


def look(values: dict[str, int]) -> Callable[[Source], int]:
    """The values of sources, by their names."""

    def found(source: Source) -> int:
        assert isinstance(source, Attribute)
        return values[source.name]

    return found


@given(TREES, VALUES, VALUES)
def test_arithmetic_is_that_of_integers_before_and_after(
    tree: Tree, before: dict[str, int], after: dict[str, int]
) -> None:
    numbers = {n: Number.of(v, Attribute(0, n, None, v)) for n, v in before.items()}
    try:
        expected = value_of(tree, before)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            value_of(tree, numbers)
        return
    found = value_of(tree, numbers)
    assert found == expected
    assert {s.name for s in getattr(found, "sources", ())} == names_in(tree)
    try:
        expected = value_of(tree, after)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            found.formula(look(after))
        return
    assert not names_in(tree) or found.formula(look(after)) == expected


def number(value: int = 6) -> Number:
    """A number of its own."""
    return Number.of(value, Attribute(0, "n", None, value))


@pytest.mark.parametrize("value", [2.5, -0.5, 3.0])
def test_with_floats_it_is_a_float(value: float) -> None:
    n = number()
    for function in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow):
        assert function(n, value) == function(6, value)
        assert type(function(n, value)) is type(function(6, value))
        assert function(value, n) == function(value, 6)


def test_it_is_an_integer_wherever_python_asks() -> None:
    n = number()
    assert list(range(10))[n] == 6
    assert [0] * n == [0] * 6
    assert n == 6
    assert hash(n) == hash(6)
    assert {6: "six"}[n] == "six"
    assert isinstance(divmod(n, 4)[0], int)
    assert f"{n}" == "6"


def test_copies_on_disk_are_plain_and_copies_in_memory_keep_the_formula() -> None:
    assert type(pickle.loads(pickle.dumps(number()))) is int
    n = number()
    assert copy.deepcopy([n])[0].sources == n.sources


Pair = namedtuple("Pair", "a b")


def test_structures_become_plain() -> None:
    n = number()
    made = plain(
        {"a": [n, (n, 1)], "s": slice(n, None, n), "z": torch.Size([n, 2]), "p": Pair(n, "x")}
    )
    assert made == {
        "a": [6, (6, 1)],
        "s": slice(6, None, 6),
        "z": torch.Size([6, 2]),
        "p": Pair(6, "x"),
    }
    assert type(made["p"]) is Pair
    flat = [made["a"][0], *made["a"][1], made["s"].start, made["s"].step, *made["z"], made["p"].a]
    assert all(type(item) is int for item in flat)


class Held(nn.Module):
    """Sizes under every kind of attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.one, self.flag, self.none = 8, 1, True, None
        self.pair, self.sizes, self.mixed, self.empty = (4, 1), [3, 5], (2, "a"), ()
        self.config = SimpleNamespace(heads=4, dims=[2, 3])
        self.layer = nn.Conv2d(3, 6, 3)


def state(model: nn.Module) -> list[tuple[int, dict[str, Any]]]:
    """All attributes of all modules and of what they hold."""
    held = [*model.modules(), model.config]
    return [(id(h), dict(vars(h))) for h in held]


def same(a: Any, b: Any) -> bool:
    """Whether two states hold the very same objects."""
    return [i for i, _ in a] == [i for i, _ in b] and all(
        x.keys() == y.keys() and all(x[k] is y[k] for k in x)
        for (_, x), (_, y) in zip(a, b, strict=True)
    )


def test_attributes_are_numbers_meanwhile_and_the_very_same_objects_afterwards() -> None:
    model = Held()
    before = state(model)
    with remembering(model) as places:
        assert isinstance(model.width, Number)
        assert type(model.one) is int
        assert model.flag is True
        assert isinstance(model.pair, tuple)
        assert isinstance(model.pair[0], Number)
        assert isinstance(model.sizes, list)
        assert all(isinstance(n, Number) for n in model.sizes)
        assert model.mixed == (2, "a")
        assert isinstance(model.config.heads, Number)
        assert isinstance(model.config.dims[1], Number)
        assert isinstance(model.layer.out_channels, Number)
        (source,) = model.sizes[1].sources
        assert isinstance(source, Attribute)
        assert places[source.holder] is model
        assert (source.name, source.index, source.value) == ("sizes", 1, 5)
    assert same(state(model), before)


def test_they_come_back_after_an_exception() -> None:
    model = Held()
    before = state(model)
    with pytest.raises(KeyError), remembering(model):
        raise KeyError
    assert same(state(model), before)


def test_what_the_network_writes_itself_meanwhile_stays() -> None:
    model = Held()
    with remembering(model):
        model.width = 11
        model.sizes = [7]
    assert model.width == 11
    assert model.sizes == [7]
    assert model.pair == (4, 1)
