# SPDX-License-Identifier: Apache-2.0
"""Where labels of several tensors meet they are united position by position, and grids keep whole slices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.graph.book import Book
from rarefy.graph.joins import combine, cross, fresh_slices, reduce
from rarefy.graph.labels import FIXED

SHAPE = (2, 3, 4)


def book() -> Book:
    """A book without parameters."""
    return Book(nn.Module())


def fresh(book: Book, *axes: int) -> Tensor:
    """New labels that vary along some axes of `SHAPE`."""
    sizes = [n if i in axes else 1 for i, n in enumerate(SHAPE)]
    return book.labels.fresh(torch.Size(sizes).numel()).reshape(sizes)


def settled(book: Book) -> None:
    """Everything is brought up to date."""
    book.labels.settle()
    book.labels.flush()


def together(book: Book, a: Tensor, b: Tensor) -> bool:
    """Whether labels are one, position by position."""
    roots = book.labels.roots
    a, b = torch.broadcast_tensors(a, b)
    return torch.equal(roots[a], roots[b])


def units(book: Book, labels: Tensor) -> int:
    """How many free classes there are among labels."""
    own = labels[labels != FIXED]
    return int(book.labels.roots[own[book.labels.free[own]]].unique().numel())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5))
def test_operands_of_a_sum_are_cut_alike_along_each_axis(operands: list[tuple[int, bool]]) -> None:
    """Each operand has full shape and labels along one axis, or size one along all others."""
    page, given_labels = book(), []
    inputs = []
    for axis, full in operands:
        labels = fresh(page, axis)
        given_labels.append((axis, labels))
        inputs.append(((labels,), SHAPE if full else labels.shape))
    merged = combine(page, inputs, 3)
    settled(page)
    bare = {a for other, full in operands if full for a in range(3) if a != other}
    for axis, labels in given_labels:
        alike = [other for where, other in given_labels if where == axis]
        assert all(together(page, labels, other) for other in alike)
        assert units(page, labels) == (0 if axis in bare else SHAPE[axis])
    assert sorted(next(i for i, n in enumerate(f.shape) if n > 1) for f in merged) == sorted(
        {axis for axis, _ in operands}
    )


def test_shorter_operands_are_aligned_at_the_last_axis() -> None:
    page = book()
    long, short = fresh(page, 2), page.labels.fresh(4)
    (found,) = combine(page, [((long,), SHAPE), ((short,), (4,))], 3)
    settled(page)
    assert found.shape == (1, 1, 4)
    assert together(page, long.reshape(-1), short)


def test_a_fixed_operand_keeps_the_axis_but_one_of_size_one_does_not() -> None:
    page = book()
    labels = fresh(page, 2)
    combine(page, [((labels,), SHAPE), ((), (3, 1))], 3)
    settled(page)
    assert units(page, labels) == 4
    combine(page, [((labels,), SHAPE), ((), (3, 4))], 3)
    settled(page)
    assert units(page, labels) == 0


def test_a_grid_that_meets_a_vector_is_cut_in_slices_along_it() -> None:
    """Channels with labels (heads, size) meet a bias for each position of the last axis."""
    for order in (1, -1):
        page = book()
        grid, vector = fresh(page, 1, 2), fresh(page, 2)
        combine(page, [((grid,), SHAPE), ((vector,), vector.shape)][::order], 3)
        settled(page)
        assert together(page, grid, vector)
        assert units(page, grid) == 4


def test_a_grid_that_a_fixed_operand_meets_along_one_axis_is_cut_along_the_other() -> None:
    page = book()
    grid, keep = fresh(page, 1, 2), fresh(page, 1)
    page.labels.fix(keep)
    combine(page, [((grid,), SHAPE), ((keep,), keep.shape)], 3)
    settled(page)
    assert units(page, grid) == 4
    assert together(page, grid[:, :1], grid)


def test_grids_with_one_axis_in_common_agree_on_it() -> None:
    page = book()
    a, b = fresh(page, 0, 1), fresh(page, 1, 2)
    combine(page, [((a,), SHAPE), ((b,), SHAPE)], 3)
    settled(page)
    shared = together(page, a[:1], a) and together(page, b[:, :, :1], b)
    if shared:
        assert together(page, a[0, :, 0], b[0, :, 0])
        assert units(page, a) == units(page, b) == 3
    else:
        assert units(page, a) == 2
        assert units(page, b) == 4


@pytest.mark.parametrize("keep", [False, True])
def test_a_sum_forgets_the_axes_that_it_adds_up(keep: bool) -> None:
    page = book()
    rows, columns = fresh(page, 1), fresh(page, 2)
    (found,) = reduce(page, (rows, columns), [0, 1], keep)
    assert found.shape == ((1, 1, 4) if keep else (4,))
    assert found.reshape(-1).tolist() == columns.reshape(-1).tolist()
    settled(page)
    assert units(page, rows) == 3


def test_what_is_left_of_a_grid_are_labels_of_whole_slices() -> None:
    page = book()
    grid = fresh(page, 1, 2)
    (found,) = reduce(page, (grid,), [1], prefer=True)
    settled(page)
    assert found.shape == (1, 4)
    assert together(page, grid, found)
    assert units(page, found) == 4


def test_a_grid_is_only_cut_along_the_axis_that_stays_if_what_it_gave_can_go() -> None:
    page = book()
    grid = fresh(page, 1, 2)
    (found,) = reduce(page, (grid,), [1], prefer=True)
    page.labels.fix(found)
    settled(page)
    assert units(page, grid) == 3  # whole rows: they change no size of the sum
    assert units(page, found) == 0


def test_slices_that_are_alike_get_one_label() -> None:
    page = book()
    page.labels.fresh(10)
    found = fresh_slices(page, torch.tensor([[1, 2], [3, 4], [1, 2]]), 0)
    assert found[0] == found[2] != found[1]
    assert int(found.min()) >= 10


def test_axes_that_are_joined_become_one_grid() -> None:
    page = book()
    a, b, c = fresh(page, 0), fresh(page, 1), fresh(page, 2)
    found = cross(page, (a, b, c), [range(0, 2)])
    assert [tuple(f.shape) for f in found] == [(1, 1, 4), (2, 3, 1)]
    settled(page)
    grid = found[1]
    assert together(page, grid, a)  # rather cut along the first
    assert units(page, b) == 0
    assert cross(page, (a,), [range(0, 2)]) == (a,)
