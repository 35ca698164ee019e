# SPDX-License-Identifier: Apache-2.0
"""Which channels of a network must be cut together, found by running it once.

A unit is what goes together: a channel with everything that reads or writes it, an attention head, a group
of a convolution. Units that touch the same axes of the same parameters form a group, from which any number
may be taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, described
from rarefy.graph.book import Book
from rarefy.graph.families import even, steps
from rarefy.graph.follow import OUTPUT, follow
from rarefy.graph.groups import Group, groups_of
from rarefy.graph.labels import FIXED
from rarefy.graph.sizes import Wired
from rarefy.task import Inputs


@dataclass(frozen=True)
class Coupling:
    """What was found out about a network.

    Attributes:
        groups: that can be cut, in the order in which their layers run.
        barriers: operators that nobody knows, and sizes written as numbers, with how often they were met;
            what they read is kept.
        book: the labels.
        wired: sizes that the code writes down.
        places: modules and plain objects whose attributes they are made of, by identity.
    """

    groups: tuple[Group, ...]
    barriers: dict[str, int]
    book: Book = field(repr=False)
    wired: tuple[Wired, ...] = field(repr=False)
    places: dict[int, Any] = field(repr=False)

    def group(self, name: str) -> Group:
        """The group of a name.

        Raises:
            KeyError: there is none.
        """
        found = next((g for g in self.groups if g.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def barrier_lines(self) -> list[str]:
        """The barriers, and the layers that are kept whole, as a report tells them."""
        lines = [f"channels stay that meet {what} ({n} times)" for what, n in self.barriers.items()]
        return lines + [f"all channels of {name} stay: {why}" for name, why in self.whole.items()]

    @property
    def whole(self) -> dict[str, str]:
        """Parameters none of whose output channels can go → why, but for those that the network gives."""
        labels = self.book.labels
        reasons: dict[str, str] = {}
        able = set()
        for (name, axis), role in self.book.roles.items():  # the taps of a kernel are outputs, too
            own = self.book.parameters[name][axis]
            if role == "out" and bool(labels.free[own].any()):
                able.add(name)
            elif role == "out" and len(own) > 1:
                reasons.setdefault(name, labels.reason_for(own))
        return {
            name: why if " " in why else f"{why} needs them all"
            for name, why in reasons.items()
            if name not in able and why not in ("", OUTPUT)
        }

    def even(self, counts: dict[str, int]) -> dict[str, int]:
        """The nearest numbers of units to take, group by group, that the network's code allows."""
        return even(counts, {g.name: (g.family, g.size) for g in self.groups})

    def removed(self, cuts: Iterable[tuple[Group, Tensor]]) -> Tensor:
        """Which labels are cut, shape (count + 1,); the last stands for fixed positions.

        Args:
            cuts: groups with the numbers of the units to take.
        """
        labels = self.book.labels
        chosen = torch.zeros(labels.count, dtype=torch.bool)
        for group, units in cuts:
            chosen[group.classes[units]] = True
        return torch.cat([chosen[labels.roots], torch.zeros(1, dtype=torch.bool)])


def couple(
    model: nn.Module, example: Inputs, *, keep: Iterable[str] = (), heads: bool = True
) -> Coupling:
    """Finds the coupled channels of a network.

    Args:
        model: in any mode; it is run once in eval mode, without gradients.
        example: a batch on the model's device.
        keep: globs of parameters or modules none of whose channels may go.
        heads: whether attention rather loses whole heads; otherwise it loses dimensions of all heads.

    Raises:
        ModelError: the network fails on the example.
    """
    was = {m: m.training for m in model.modules()}
    try:
        book, wired, places = follow(model, example)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the network can't be followed on the example: {described(error)}"
        ) from error
    finally:
        for module, mode in was.items():
            module.training = mode
    hold(book, list(keep))
    if not heads:
        for block in book.labels.blocks:
            block.turn()
    groups = settled(book, wired)
    return Coupling(groups, book.barriers, book, tuple(wired), places)


def settled(book: Book, wired: list[Wired]) -> tuple[Group, ...]:
    """The groups, after every grid has chosen the axis along which it is cut.

    Families that can't shrink at all, because their groups' sizes have no common divisor, turn their grids:
    attention that can't lose heads loses dimensions of all heads. Where that helps nobody the first choice
    stays.
    """
    first = book.labels.unsettled()
    book.labels.settle()
    groups = groups_of(book, wired)
    stuck = stuck_families(groups)
    if not stuck:
        return groups
    own = {int(c) for g in groups if g.family in stuck for c in g.classes}
    taken = torch.zeros(book.labels.count, dtype=torch.bool)
    taken[list(own)] = True
    for block, twin in zip(book.labels.blocks, first.blocks, strict=True):
        inside = block.labels[block.labels != FIXED]
        twin.chosen = block.chosen
        if bool(taken[book.labels.roots[inside]].any()):
            twin.turn()
    before, book.labels = book.labels, first
    book.labels.settle()
    turned = groups_of(book, wired)
    if len(stuck_families(turned)) < len(stuck):
        return turned
    book.labels = before
    return groups


def stuck_families(groups: Sequence[Group]) -> set[int]:
    """Families of several units that have no common step."""
    sizes: dict[int, list[int]] = {}
    for group in groups:
        sizes.setdefault(group.family, []).append(group.size)
    return {name for name, each in sizes.items() if max(each) > 1 and steps(each) == 1}


def hold(book: Book, patterns: list[str]) -> None:
    """Fixes what the parameters give whose names, or whose modules' names, match a glob."""
    book.labels.reason = "the settings keep them"
    for name, axes in book.parameters.items():
        module = name.rpartition(".")[0]
        if any(fnmatchcase(name, p) or fnmatchcase(module, p) for p in patterns):
            for axis, labels in enumerate(axes):
                if book.roles.get((name, axis)) != "in":
                    book.labels.fix(labels)
