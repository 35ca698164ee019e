# SPDX-License-Identifier: Apache-2.0
"""Classes of labels are those of a plain union-find, and grids stay rectangles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.graph.labels import FIXED, Block, Labels, components

PAIRS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20)
    )
)


def classes(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest node that each node is joined to, by walking."""
    parent = list(range(n))
    for a, b in pairs:
        low, high = sorted((parent[a], parent[b]))
        parent = [low if p == high else p for p in parent]
    return parent


@given(PAIRS)
def test_components_are_those_of_a_plain_union_find(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    n, pairs = case
    a, b = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    assert components(n, a, b).tolist() == classes(n, pairs)


def test_a_long_chain_is_one_class() -> None:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert not components(5000, order[:-1], order[1:]).any()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("unite"), st.integers(0, 9), st.integers(-1, 9)),
        st.tuples(st.just("fix"), st.integers(-1, 9), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("fresh"), st.integers(1, 3), st.just(0)),
    ),
    max_size=25,
)


@given(STEPS)
def test_classes_and_freedom_do_not_depend_on_when_they_are_brought_up_to_date(
    steps: list[tuple[str, int, int]],
) -> None:
    labels, pairs, fixed = Labels(), [], set()
    labels.fresh(10)
    for kind, a, b in steps:
        if kind == "fresh":
            labels.fresh(a)
        elif kind == "flush":
            labels.flush()
        elif kind == "fix":
            labels.fix(torch.tensor([a]))
            fixed.add(a)
        elif b == FIXED:
            labels.unite(torch.tensor([a]), torch.tensor([b]))
            fixed.add(a)
        else:
            labels.unite(torch.tensor([a]), torch.tensor([b]))
            pairs.append((a, b))
    labels.flush()
    expected = classes(labels.count, pairs)
    bound = {expected[i] for i in fixed - {FIXED}}
    found = labels.roots.tolist()
    assert [found.index(r) for r in found] == [expected.index(r) for r in expected]
    assert labels.free.tolist() == [r not in bound for r in expected]


def test_unite_broadcasts() -> None:
    labels = Labels()
    rows, one = labels.fresh(6).reshape(2, 3), labels.fresh(2).reshape(2, 1)
    labels.unite(rows, one)
    labels.flush()
    assert labels.roots.tolist() == [0, 0, 0, 3, 3, 3, 0, 3]
    assert bool(labels.free.all())


def grid(labels: Labels, rows: int, columns: int, **how: object) -> Block:
    """A block of new labels, as the only one."""
    block = Block(labels.fresh(rows * columns).reshape(rows, columns), **how)  # type: ignore[arg-type]
    labels.blocks.append(block)
    return block


def groups(labels: Labels) -> list[list[int]]:
    """The free classes, sorted."""
    labels.settle()
    labels.flush()
    found: dict[int, list[int]] = {}
    for i, root in enumerate(labels.roots.tolist()):
        if bool(labels.free[i]):
            found.setdefault(root, []).append(i)
    return sorted(found.values())


def test_a_grid_is_cut_along_the_axis_with_more_units() -> None:
    labels = Labels()
    grid(labels, 2, 3)
    assert groups(labels) == [[0, 3], [1, 4], [2, 5]]


def test_a_preferred_axis_comes_first_unless_it_is_locked() -> None:
    labels = Labels()
    grid(labels, 2, 3, prefer=0)
    assert groups(labels) == [[0, 1, 2], [3, 4, 5]]
    labels = Labels()
    grid(labels, 2, 3, prefer=0, locked=frozenset({0}))
    assert groups(labels) == [[0, 3], [1, 4], [2, 5]]


def test_nothing_is_left_of_a_grid_that_is_locked_along_both_axes() -> None:
    labels = Labels()
    grid(labels, 2, 3, locked=frozenset({0, 1}))
    assert groups(labels) == []


def test_a_fixed_position_moves_the_cut_to_the_other_axis() -> None:
    labels = Labels()
    block = grid(labels, 4, 3)
    labels.fix(
        block.labels[:2, 0]
    )  # two rows of four are left, and two columns of three: rows come first
    assert groups(labels) == [[6, 7, 8], [9, 10, 11]]
    labels = Labels()
    block = grid(labels, 4, 3)
    labels.fix(block.labels[:, 0])
    assert groups(labels) == [[1, 4, 7, 10], [2, 5, 8, 11]]


def test_slices_of_the_axis_that_is_cut_go_with_it_and_those_of_the_other_stay() -> None:
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    grid(labels, 2, 3, slices={0: rows, 1: columns}, prefer=0)
    assert groups(labels) == [[0, 5, 6, 7], [1, 8, 9, 10]]


def test_blocks_of_the_same_labels_agree() -> None:
    labels = Labels()
    first = grid(labels, 2, 3, prefer=0, rank=1)
    labels.blocks.append(Block(first.labels.t(), prefer=0, rank=2))  # would rather have columns
    assert groups(labels) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("inner", "expected"), [(3, 10), (5, 10), (1, 4)])
def test_blocks_that_share_an_axis_are_cut_along_it_together_or_not_at_all(
    inner: int, expected: int
) -> None:
    """A grouped convolution: four groups, or channels inside of all groups, whatever leaves more units."""
    labels, key = Labels(), object()
    group = labels.fresh(4)
    for n in (inner, 10 - inner if inner != 1 else 2):
        grid(labels, 4, n, slices={0: group}, shared=(0, key))
    assert len(groups(labels)) == expected
