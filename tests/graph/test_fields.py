# SPDX-License-Identifier: Apache-2.0
"""Labels that are kept small say the same as labels at full size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rarefy.graph.fields import (
    along,
    axes_of,
    compact,
    is_constant,
    kept_along,
    regroup,
    replay,
    runs,
    tidy,
)  # fmt: skip
from rarefy.graph.labels import FIXED


@st.composite
def shapes(draw: st.DrawFn, factors: list[int]) -> list[int]:
    """A shape whose sizes multiply to the product of some factors in their order."""
    sizes = [1]
    for factor in factors:
        if draw(st.booleans()):
            sizes.append(1)
        sizes[-1] *= factor
    for _ in range(draw(st.integers(0, 2))):
        sizes.insert(draw(st.integers(0, len(sizes))), 1)
    return sizes


@st.composite
def labelled(draw: st.DrawFn, shape: list[int]) -> Tensor:
    """Labels that vary along some axes of a shape, with repetitions and fixed positions."""
    varies = [n if draw(st.booleans()) else 1 for n in shape]
    values = st.integers(FIXED, draw(st.sampled_from([0, 3, 100])))
    n = math.prod(varies)
    return torch.tensor(draw(st.lists(values, min_size=n, max_size=n))).reshape(varies)


@st.composite
def regrouped(draw: st.DrawFn) -> tuple[Tensor, list[int], list[int]]:
    """Labels, the shape of their tensor, and another shape of as many elements."""
    factors = draw(st.lists(st.sampled_from([2, 3]), max_size=4))
    old, new = draw(shapes(factors)), draw(shapes(factors))
    return draw(labelled(old)), old, new


def says(found: Tensor | None, full: Tensor) -> bool:
    """Whether small labels are what they are at full size; none if nothing can be cut."""
    if found is None:
        return full.numel() <= 1 or bool((full == full.reshape(-1)[0]).all())
    return found.dim() == full.dim() and torch.equal(found.expand(full.shape), full)


@given(regrouped())
def test_regrouping_is_expanding_and_reshaping(case: tuple[Tensor, list[int], list[int]]) -> None:
    labels, old, new = case
    assert says(regroup(labels, old, new), labels.expand(old).reshape(new))


def test_regrouping_expands_no_axis_that_is_left_alone() -> None:
    labels = torch.arange(6).reshape(1, 6, 1)
    found = regroup(labels, [1_000_000, 6, 1_000_000], [1_000_000, 2, 3, 1_000_000])
    assert found is not None
    assert found.shape == (1, 2, 3, 1)


@given(regrouped())
def test_runs_cover_both_shapes_hold_equally_many_and_are_as_short_as_can_be(
    case: tuple[Tensor, list[int], list[int]],
) -> None:
    _, old, new = case
    found = runs(old, new)
    i = j = 0
    for start, stop, first, last in found:
        assert (start, first) == (i, j)
        assert math.prod(old[start:stop]) == math.prod(new[first:last])
        inside = {math.prod(old[start:k]) for k in range(start + 1, stop)}
        assert not inside & {math.prod(new[first:k]) for k in range(first + 1, last)} - {1}
        i, j = stop, last
    assert (i, j) == (len(old), len(new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([2, 6, 4], [2, 2, 3, 4], [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]),
        ([4, 6], [24], [(0, 2, 0, 1)]),
        ([2, 3, 4], [6, 2, 2], [(0, 2, 0, 1), (2, 3, 1, 3)]),
        ([4, 3], [2, 6], [(0, 2, 0, 2)]),
        ([], [], []),
    ],
)
def test_runs_by_hand(
    old: list[int], new: list[int], expected: list[tuple[int, int, int, int]]
) -> None:
    assert runs(old, new) == expected


OPERATORS = {
    "permute": lambda t: t.permute(2, 0, 1),
    "transpose": lambda t: t.transpose(0, 2),
    "slice": lambda t: t[:, 1:],
    "step": lambda t: t[:, :, ::2],
    "select": lambda t: t.select(1, 1),
    "split": lambda t: t.split([1, 2], 1),
    "roll": lambda t: t.roll(1, 2),
    "flip": lambda t: t.flip(1),
    "repeat": lambda t: t.repeat(1, 2, 1),
    "unfold": lambda t: t.unfold(2, 2, 1),
    "expand": lambda t: t.unsqueeze(1).expand(-1, 5, -1, -1),
    "diagonal": lambda t: t.diagonal(0, 0, 2),
    "cat with itself": lambda t: torch.cat([t, t.flip(2)], 2),
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=20)
@given(labels=labelled([2, 3, 4]))
def test_replaying_is_running_the_operator_on_labels_of_full_size(
    name: str, labels: Tensor
) -> None:
    full = OPERATORS[name](labels.expand(2, 3, 4).clone())
    found = replay(labels, (2, 3, 4), OPERATORS[name])
    expected = list(full) if isinstance(full, tuple) else [full]
    assert len(found) == len(expected)
    assert all(says(a, b) for a, b in zip(found, expected, strict=True))


@given(labelled([2, 3, 4]))
def test_tidying_loses_nothing_and_leaves_no_constant_axis(labels: Tensor) -> None:
    found = tidy(labels)
    assert says(found, labels)
    if found is not None:
        assert all(not is_constant(found, axis) for axis in axes_of(found))


@given(labelled([2, 3, 2]), st.sets(st.integers(0, 100)))
def test_what_stays_along_an_axis_is_what_is_not_wholly_removed(
    labels: Tensor, gone: set[int]
) -> None:
    removed = torch.zeros(102, dtype=torch.bool)
    removed[list(gone)] = True
    for axis in range(3):
        kept = kept_along((labels,), axis, removed)
        if labels.shape[axis] == 1:
            assert kept is None
            continue
        expected = [
            any(v not in gone for v in part.reshape(-1).tolist()) for part in labels.unbind(axis)
        ]
        assert kept is not None
        assert kept.tolist() == expected


def test_of_several_labels_along_an_axis_each_can_take_positions() -> None:
    removed = torch.tensor([True, False, False, False, False, True, False])
    pair = torch.arange(3).reshape(1, 3), torch.arange(3, 6).reshape(1, 3)
    kept = kept_along(pair, 1, removed)
    assert kept is not None
    assert kept.tolist() == [False, True, False]


def test_shapes_of_labels() -> None:
    labels = torch.arange(6).reshape(1, 2, 1, 3)
    assert axes_of(labels) == (1, 3)
    assert compact(labels).shape == (2, 3)
    assert along(7, 1, 3) == [1, 7, 1]
