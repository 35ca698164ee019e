# SPDX-License-Identifier: Apache-2.0
"""Labels of channels: which of them are one, which must stay, and which must go in whole rows or columns.

A label is a number that one position along one axis of a parameter gets. While the network runs, labels
travel beside the tensors; where an operator forces two axes to stay equal their labels are united. What is
one class at the end is cut together.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIXED = -1
"""The label of a position that can't be cut."""

UNKNOWN = 2**31
"""Stands for no reason."""


@dataclass(eq=False)
class Block:
    """Labels that stand in a grid of two or more axes, of which whole slices along one axis go together.

    Reshaping an axis of n · d channels into (n, d) leaves a rectangle only if whole rows or whole columns
    are cut. Which of both is chosen when everything is known, see `Labels.settle`.

    Attributes:
        labels: shape (n_1, …, n_k).
        slices: axis → labels, shape (n_axis,), of what stands for a whole slice along that axis: the group
            of a grouped convolution, the head of an attention.
        locked: axes along which nothing can be cut.
        shared: axis that several blocks of one operator have in common, with a key that they share; they
            are cut along it together or not at all.
        prefer: the axis to cut along if that is possible.
        rank: blocks of a lower rank choose first.
        chosen: the axis that `Labels.settle` chose; None before.
    """

    labels: Tensor
    slices: dict[int, Tensor] = field(default_factory=dict)
    locked: frozenset[int] = frozenset()
    shared: tuple[int, object] | None = None
    prefer: int | None = None
    rank: int = 2
    chosen: int | None = None

    def turn(self) -> None:
        """Makes the block prefer another axis than the one that it was cut along, or would like to be."""
        now = self.prefer if self.chosen is None else self.chosen
        others = [i for i in range(self.labels.dim()) if i not in self.locked and i != now]
        if now is not None and others:
            self.prefer = others[0]


class Labels:
    """All labels of one network, with what was found out about them.

    Attributes:
        count: of labels.
        pairs, kept: labels that are united, or fixed with a reason, at the next `flush`.
        reason: why labels that are fixed now are fixed.
        reasons: all reasons so far, with a number each.
        why: number of the first reason for which a label's class is fixed, shape (count,), after `flush`.
        blocks: grids that must stay rectangular.
        roots: the class of every label, named by one of its labels, shape (count,), after `flush`.
        free: whether a label's class may be cut, shape (count,), after `flush`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.kept: list[tuple[Tensor, int]] = []
        self.reason = ""
        self.reasons: dict[str, int] = {}
        self.why = torch.arange(0)
        self.blocks: list[Block] = []
        self.roots = torch.arange(0)
        self.free = torch.ones(0, dtype=torch.bool)

    def fresh(self, n: int) -> Tensor:
        """`n` new labels, shape (n,)."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Makes labels one, position by position; a label that meets a fixed position is fixed."""
        a, b = torch.broadcast_tensors(a, b)
        if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
            return
        a, b = a.reshape(-1), b.reshape(-1)
        free = (a != FIXED) & (b != FIXED)
        if bool(free.all()):
            self.pairs.append((a, b))
        else:
            self.pairs.append((a[free], b[free]))
            self.fix(a[~free])
            self.fix(b[~free])

    def fix(self, labels: Tensor) -> None:
        """Forbids to cut these."""
        number = self.reasons.setdefault(self.reason, len(self.reasons))
        self.kept.append((labels.reshape(-1), number))

    def reason_for(self, labels: Tensor) -> str:
        """The first reason for which some of these labels are fixed; empty if none is."""
        labels = labels[labels != FIXED]
        number = int(self.why[self.roots[labels]].min()) if len(labels) else UNKNOWN
        return next((text for text, n in self.reasons.items() if n == number), "")

    def settle(self) -> None:
        """Chooses for every block the axis along which it is cut, and ties what must go together.

        The preferred axis is taken where anything can be cut along it, else the one that leaves the most
        units. A choice is seen by those that come after it, so that blocks of the same labels agree.
        """
        self.reason = "whole rows or columns of a grid go, and not these"
        families: dict[object, list[Block]] = {}
        for block in self.blocks:
            families.setdefault(block.shared[1] if block.shared else block, []).append(block)
        self.flush()
        for family in sorted(families.values(), key=lambda f: f[0].rank):
            for block, axis in zip(family, self.choose(family), strict=True):
                block.chosen = axis
                self.tie(block, axis)
                self.join()
        self.flush()

    def unsettled(self) -> "Labels":
        """A copy in which no block has been settled, if `settle` was not called yet."""
        self.flush()
        twin = copy.copy(self)
        twin.roots, twin.free = self.roots.clone(), self.free.clone()
        twin.why, twin.reasons = self.why.clone(), dict(self.reasons)
        twin.pairs, twin.kept, twin.blocks = [], [], [copy.copy(b) for b in self.blocks]
        return twin

    def choose(self, family: list[Block]) -> list[int]:
        """The axis for each of some blocks that are cut along their shared axis together or not at all."""
        along = [b.shared[0] for b in family if b.shared]
        if len(along) == len(family) > 1:
            together = sum(self.units(b, i) for b, i in zip(family, along, strict=True))
            others = [self.best(b, but=i) for b, i in zip(family, along, strict=True)]
            if together >= sum(count for count, _ in others):
                return along
            return [axis for _, axis in others]
        return [
            b.prefer if b.prefer is not None and self.units(b, b.prefer) > 1 else self.best(b)[1]
            for b in family
        ]

    def flush(self) -> None:
        """Brings `roots` and `free` up to date with what was united and fixed."""
        self.join()
        self.roots = self.find(torch.arange(self.count))
        self.free, self.why = self.free[self.roots], self.why[self.roots]

    def find(self, labels: Tensor) -> Tensor:
        """The classes of labels; those of the last `join` are found by following their roots' roots."""
        found = self.roots[labels]
        while not torch.equal(further := self.roots[found], found):
            found = further
        return found

    def join(self) -> None:
        """Enters what was united and fixed at the roots alone, where `find` sees it."""
        if len(self.roots) < self.count:
            new = torch.arange(len(self.roots), self.count)
            self.roots = torch.cat([self.roots, new])
            self.free = torch.cat([self.free, torch.ones(len(new), dtype=torch.bool)])
            self.why = torch.cat([self.why, torch.full((len(new),), UNKNOWN)])
        if self.pairs:
            a, b = (self.find(torch.cat(side)) for side in zip(*self.pairs, strict=True))
            nodes, places = torch.cat([a, b]).unique(return_inverse=True)
            joined = components(len(nodes), places[: len(a)], places[len(a) :])
            self.roots[nodes] = nodes[joined]
            self.free[nodes[joined[~self.free[nodes]]]] = False
            self.why.scatter_reduce_(0, nodes[joined], self.why[nodes], "amin")
            self.pairs = []
        if self.kept:
            fixed = torch.cat([labels for labels, _ in self.kept])
            whys = torch.tensor([why for _, why in self.kept])
            whys = whys.repeat_interleave(torch.tensor([len(labels) for labels, _ in self.kept]))
            classes = self.find(fixed[fixed != FIXED])
            self.free[classes] = False
            self.why.scatter_reduce_(0, classes, whys[fixed != FIXED], "amin")
            self.kept = []

    def tie(self, block: Block, axis: int) -> None:
        """Makes whole slices along `axis` one, and fixes what stands for slices along the others."""
        rows = block.labels.movedim(axis, 0).flatten(1)
        if axis in block.locked:
            self.fix(rows)
        first = rows[:, :1].expand_as(rows)
        new = (self.find(first) != self.find(rows)) | (first == FIXED) | (rows == FIXED)
        self.unite(first[new], rows[new])
        for along, labels in block.slices.items():
            if along == axis:
                self.unite(rows[:, 0], labels)
            else:
                self.fix(labels)

    def units(self, block: Block, axis: int) -> int:
        """How many units are left to cut if whole slices along an axis go together."""
        if axis in block.locked:
            return 0
        rows = block.labels.movedim(axis, 0).flatten(1)
        if axis in block.slices:
            rows = torch.cat([rows, block.slices[axis].unsqueeze(1)], 1)
        able = ((rows != FIXED) & self.free[self.find(rows)]).all(1)
        return int(self.find(rows[able, 0]).unique().numel())

    def best(self, block: Block, but: int = -1) -> tuple[int, int]:
        """The number of units along the best axis, and that axis; the first where several are as good."""
        axes = [i for i in range(block.labels.dim()) if i != but]
        counts = [self.units(block, i) for i in axes]
        return max(counts), axes[counts.index(max(counts))]


def components(n: int, a: Tensor, b: Tensor) -> Tensor:
    """Connected components of the pairs (a_i, b_i): for each of `n` nodes the smallest that it is joined to.

    Args:
        a, b: shape (m,).
    """
    roots = torch.arange(n)
    while True:
        low = torch.minimum(roots[a], roots[b])
        found = roots.scatter_reduce(0, roots[a], low, "amin")
        found = found.scatter_reduce(0, roots[b], low, "amin")
        while not torch.equal(shorter := found[found], found):
            found = shorter
        if torch.equal(found, roots):
            return roots
        roots = found
