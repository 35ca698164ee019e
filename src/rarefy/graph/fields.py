# SPDX-License-Identifier: Apache-2.0
"""Labels of one tensor: integers with as many axes, of size 1 along those on which they don't vary."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rarefy.graph.labels import FIXED

Fields: TypeAlias = tuple[Tensor, ...]


def axes_of(labels: Tensor) -> tuple[int, ...]:
    """The axes along which labels vary."""
    return tuple(i for i, n in enumerate(labels.shape) if n > 1)


def compact(labels: Tensor) -> Tensor:
    """Labels without their axes of size 1."""
    return labels.reshape([n for n in labels.shape if n > 1])


def along(n: int, axis: int, dims: int) -> list[int]:
    """The shape of labels that vary along one axis of `dims`."""
    return [n if i == axis else 1 for i in range(dims)]


def tidy(labels: Tensor) -> Tensor | None:
    """Labels with axes on which they turn out constant shrunk to size 1; None if nothing varies or is free.

    An axis of size one carries no labels: the last channel can't be cut.
    """
    for axis, n in enumerate(labels.shape):
        if n > 1 and (labels.stride(axis) == 0 or is_constant(labels, axis)):
            labels = labels.narrow(axis, 0, 1)
    if labels.numel() <= 1 or not bool((labels != FIXED).any()):
        return None
    return labels


def is_constant(labels: Tensor, axis: int) -> bool:
    """Whether labels don't vary along an axis."""
    first, second = labels.narrow(axis, 0, 1), labels.narrow(axis, 1, 1)
    return torch.equal(first, second) and bool((labels == first).all())


def replay(labels: Tensor, shape: Sequence[int], operator: Callable[[Tensor], Any]) -> list[Any]:
    """What an operator on shapes does to labels: it is run on them.

    Args:
        labels: of a tensor of `shape`.
        operator: takes the labels at full size (a view without memory) and returns one or several tensors.

    Returns:
        Labels for every result, None where none are left.
    """
    results = operator(labels.expand(*shape))
    many = isinstance(results, (tuple, list))
    return [tidy(result) for result in (results if many else [results])]


def regroup(labels: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor | None:
    """Labels of a tensor of shape `old` viewed as `new`; only axes that are joined are expanded."""
    sizes: list[int] = []  # of the old axes, those that don't matter taken as 1
    target: list[int] = []
    for start, stop, first, last in runs(old, new):
        part = list(labels.shape[start:stop])
        if any(n > 1 for n in part):
            sizes += list(old[start:stop])
            target += list(new[first:last])
        else:
            sizes += [1] * (stop - start)
            target += [1] * (last - first)
    return tidy(labels.expand(sizes).reshape(target))


def runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The shortest runs of axes that hold equally many elements: (start, stop) in `old` and in `new`."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start, first, a, b = i, j, 1, 1
        while i == start or j == first or a != b:
            if i < len(old) and (a <= b or j >= len(new)):
                a, i = a * old[i], i + 1
            elif j < len(new):
                b, j = b * new[j], j + 1
            else:
                break
        found.append((start, i, first, j))
    return found


def kept_along(fields: Fields, axis: int, removed: Tensor) -> Tensor | None:
    """Which positions along an axis stay, shape (n,), or None if no labels vary along it.

    Args:
        fields: of the tensor.
        axis: of the tensor.
        removed: shape (count + 1,), whether each label is cut; the last one, for fixed positions, is False.
    """
    kept: Tensor | None = None
    for labels in fields:
        if labels.shape[axis] > 1:
            stays = (~removed[labels]).movedim(axis, 0).reshape(labels.shape[axis], -1).any(1)
            kept = stays if kept is None else kept & stays
    return kept
