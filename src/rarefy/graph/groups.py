# SPDX-License-Identifier: Apache-2.0
"""Units that touch the same axes of the same parameters form a group."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.families import families
from rarefy.graph.labels import FIXED
from rarefy.graph.sizes import Wired


@dataclass(frozen=True)
class Member:
    """One axis of a parameter or buffer that a group touches.

    Attributes:
        name: of the parameter.
        axis: of it.
        role: ``"out"`` if the axis names what a layer gives, ``"in"`` what it reads, ``"along"`` for norms,
            biases and everything else that stands beside the channels.
        places: positions along the axis, shape (m,).
        units: unit of the group that each belongs to, shape (m,).
    """

    name: str
    axis: int
    role: str
    places: Tensor
    units: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be cut one by one.

    Attributes:
        name: of the first layer that gives them.
        classes: the label class of each unit, shape (size,).
        members: every axis that shrinks with them.
        family: number of the family; groups of one family shrink by the same share.
    """

    name: str
    classes: Tensor
    members: tuple[Member, ...]
    family: int = 0

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.classes)


def groups_of(book: Book, wired: list[Wired]) -> tuple[Group, ...]:
    """Sorts the free classes by the axes that they touch."""
    labels = book.labels
    axes, axis_of, place_of, root_of = touched(book)
    if not len(root_of):
        return ()
    kinds = kinds_of(axis_of, root_of, labels.count)
    classes_of, units = classes_and_units(kinds)
    where = kinds[root_of] * len(axes) + axis_of
    order = torch.argsort(where, stable=True)
    which, sizes = where[order].unique_consecutive(return_counts=True)
    members: list[list[Member]] = [[] for _ in classes_of]
    parts = (place_of[order].split(sizes.tolist()), units[root_of[order]].split(sizes.tolist()))
    for number, places, owners in zip(which.tolist(), *parts, strict=True):
        name, along = axes[number % len(axes)]
        role = book.roles.get((name, along), "along")
        members[number // len(axes)].append(Member(name, along, role, places, owners))
    related = families([len(classes) for classes in classes_of], kinds, wired, labels)
    groups = [
        Group(named(each), classes, tuple(each), family)
        for classes, each, family in zip(classes_of, members, related, strict=True)
        if any(m.role == "out" for m in each)
    ]
    return tuple(unique_names(groups))


def touched(book: Book) -> tuple[list[tuple[str, int]], Tensor, Tensor, Tensor]:
    """Every position of a parameter that may be cut.

    Returns:
        The axes (parameter, axis); and for each position the number of its axis, its place along it and its
        class, shapes (m,).
    """
    labels = book.labels
    names, axis_of, place_of, every = book.positions
    able = (every != FIXED).logical_and(labels.free[every])
    return names, axis_of[able], place_of[able], labels.roots[every[able]]


def classes_and_units(kinds: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The classes of every group, and for every class its number in its group, shape (count,).

    Args:
        kinds: for every class the number of its group, or -1, shape (count,).
    """
    classes = (kinds >= 0).nonzero()[:, 0]
    classes = classes[kinds[classes].argsort(stable=True)]
    sizes = torch.bincount(kinds[classes])
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    units = torch.full((len(kinds),), -1)
    units[classes] = torch.arange(len(classes)) - starts
    return classes.split(sizes.tolist()), units


def kinds_of(axis_of: Tensor, root_of: Tensor, count: int) -> Tensor:
    """For every class the number of its group, -1 for those that can't be cut, shape (count,).

    Classes belong together if they touch the same axes; a set of axes is told by a sum of random numbers.
    """
    kinds = torch.full((count,), -1)
    if not len(root_of):
        return kinds
    many = int(axis_of.max()) + 1
    pairs = (root_of * many + axis_of).unique()
    roots, axes = pairs // many, pairs % many
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(-(2**62), 2**62, (many,), generator=generator)
    sums = torch.zeros(count, dtype=torch.long).index_add_(0, roots, signs[axes])
    classes = roots.unique()
    _, which = sums[classes].unique(return_inverse=True)
    first = torch.full((int(which.max()) + 1,), count).scatter_reduce(0, which, classes, "amin")
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(len(first))
    kinds[classes] = rank[which]
    return kinds


def named(members: list[Member]) -> str:
    """The layer after which a group is called."""
    first = next((m for m in members if m.role == "out"), members[0])
    return first.name.rpartition(".")[0] or first.name


def unique_names(groups: list[Group]) -> list[Group]:
    """Groups of one layer are told apart by a number."""
    seen: dict[str, int] = {}
    result = []
    for group in groups:
        number = seen[group.name] = seen.get(group.name, -1) + 1
        name = f"{group.name}#{number}" if number else group.name
        result.append(replace(group, name=name))
    return result
