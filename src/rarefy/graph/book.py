# SPDX-License-Identifier: Apache-2.0
"""Which labels every tensor of a running network carries, and what joins them."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from rarefy.graph.fields import Fields, along, axes_of, compact, tidy
from rarefy.graph.labels import FIXED, Block, Labels
from rarefy.graph.numbers import plain

Key: TypeAlias = tuple[Any, ...]


class Book:
    """Labels of tensors, found by the memory that a tensor looks at: autograd may wrap a view anew.

    Attributes:
        labels: what is known about the labels themselves.
        parameters: name of every parameter and buffer → labels along each axis, shape (n_axis,).
        static: keys of tensors that depend on parameters alone.
        roles: (name, axis) → ``"in"`` or ``"out"`` of a parameter that is multiplied as a matrix or kernel.
        groups: labels of the groups of the last grouped convolution or norm, shape (groups,).
        sized: whether somebody else looks after the grids that the running call makes.
        read: keys of tensors that an operator read.
        watching: whether the operators that run are the network's, not our own.
        ran: how many operators ran.
        counted: number of an operator that looks at all positions of an axis with labels, as a mean does →
            labels of its first operand.
        barriers: operators without a rule, which keep the channels that they read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.labels = Labels()
        self.parameters: dict[str, list[Tensor]] = {}
        self.barriers: dict[str, int] = {}
        self.static: set[Key] = set()
        self.homes: list[tuple[int, str, int]] = []
        self.roles: dict[tuple[str, int], str] = {}
        self.found: dict[Key, Fields] = {}
        self.alive: dict[int, StorageWeakRef] = {}
        self.groups: Tensor | None = None
        self.sized = False
        self.watching = True
        self.read: set[Key] = set()
        self.ran = 0
        self.counted: dict[int, Fields] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.parameters[name] = [self.fresh(name, i, n) for i, n in enumerate(tensor.shape)]
            fields = [
                tidy(labels.reshape(along(len(labels), i, tensor.dim())))
                for i, labels in enumerate(self.parameters[name])
            ]
            self.put(tensor, [f for f in fields if f is not None], static=True)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function of the network's code; only what runs inside counts as the network's."""
        self.watching = True
        try:
            return func(*plain(args), **plain(kwargs))
        finally:
            self.watching = False

    def fresh(self, name: str, axis: int, n: int) -> Tensor:
        """New labels for an axis of a parameter; the only position of an axis is fixed."""
        if n <= 1:
            return torch.full((n,), FIXED)
        self.homes.append((self.labels.count, name, axis))
        return self.labels.fresh(n)

    def key(self, tensor: Tensor) -> Key:
        """What identifies a tensor; its storage's number is not given away while the book is open."""
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self.alive:
            self.alive[number] = StorageWeakRef(storage)
        return number, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()

    def fields(self, tensor: Tensor) -> Fields:
        """The labels of a tensor; none if all its positions are fixed."""
        return self.found.get(self.key(tensor), ())

    def put(self, tensor: Tensor, fields: Iterable[Tensor | None], static: bool = False) -> None:
        """Remembers the labels of a tensor."""
        key = self.key(tensor)
        kept = tuple(f for f in fields if f is not None)
        if kept:
            self.found[key] = kept
        else:
            self.found.pop(key, None)
        self.static.discard(key)
        if static:
            self.static.add(key)

    def is_static(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on parameters alone."""
        return self.key(tensor) in self.static

    def fix(self, *tensors: Tensor) -> None:
        """Forbids to cut anything that these tensors carry."""
        for tensor in tensors:
            for labels in self.fields(tensor):
                self.labels.fix(labels)

    def fresh_slices(self, labels: Tensor, axis: int) -> Tensor:
        """New labels for whole slices along an axis, the same one for slices that are alike, shape (n,)."""
        rows = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
        _, which = rows.unique(dim=0, return_inverse=True)
        return self.labels.fresh(int(which.max()) + 1)[which]

    def cross(self, fields: Fields, spans: Iterable[range]) -> Fields:
        """Labels of axes that are about to be joined, each with labels of its own, become one grid.

        Args:
            fields: of a tensor.
            spans: runs of its axes that are joined.
        """
        for span in spans:
            inside = [f for f in fields if len(axes_of(f)) == 1 and axes_of(f)[0] in span]
            if len({axes_of(f) for f in inside}) == len(inside) > 1:
                shape = [
                    n if n > 1 else 1 for n in torch.broadcast_shapes(*(f.shape for f in inside))
                ]
                grid = self.labels.fresh(math.prod(shape)).reshape(shape)
                by_axis = {axes_of(f)[0]: compact(f) for f in inside}
                self.block(grid, by_axis, prefer=min(by_axis))
                fields = (*(f for f in fields if all(f is not i for i in inside)), grid)
        return fields

    def barrier(self, name: str, tensors: Sequence[Tensor]) -> None:
        """An operator that nobody knows keeps what it reads."""
        if any(self.fields(t) for t in tensors):
            self.barriers[name] = self.barriers.get(name, 0) + 1
        self.fix(*tensors)

    def block(
        self, labels: Tensor, slices: dict[int, Tensor] | None = None, locked: Iterable[int] = (),
        shared: tuple[int, object] | None = None, prefer: int | None = None,
    ) -> None:  # fmt: skip
        """Labels that vary along several axes must stay a rectangle.

        Args:
            labels: of a tensor.
            slices: axis of the tensor → labels of whole slices along it, shape (n_axis,).
            locked: axes of the tensor along which nothing can be cut.
            shared, prefer: see `labels.Block`, with the tensor's axes.
        """
        axes = axes_of(labels)
        if len(axes) == 1:
            (axis,) = axes
            if slices and axis in slices:
                self.labels.unite(compact(labels), slices[axis])
            if axis in locked:
                self.labels.fix(labels)
            return
        place = {axis: i for i, axis in enumerate(axes)}
        self.labels.blocks.append(
            Block(
                compact(labels),
                {place[a]: s for a, s in (slices or {}).items()},
                frozenset(place[a] for a in locked if a in place),
                (place[shared[0]], shared[1]) if shared else None,
                place.get(prefer) if prefer is not None else None,
            )
        )

    def role(self, labels: Tensor, name: str) -> None:
        """Remembers what the parameters' axes that these labels were made for are used as."""
        first = int(labels.reshape(-1)[0])
        if first != FIXED:
            _, parameter, axis = self.homes[
                bisect_right(self.homes, first, key=lambda home: home[0]) - 1
            ]
            self.roles.setdefault((parameter, axis), name)

    def combine(self, operands: Sequence[tuple[Fields, Sequence[int]]], dims: int) -> list[Tensor]:
        """The labels of a broadcast product or sum, after uniting what must stay equal.

        Args:
            operands: fields and shapes, aligned at the last axis.
            dims: axes of the result.
        """
        merged: list[Tensor] = []
        for fields, _ in operands:
            for labels in fields:
                merged = self.merge(
                    merged, labels.reshape((1,) * (dims - labels.dim()) + labels.shape)
                )
        for fields, shape in operands:
            lead = dims - len(shape)
            for axis, n in enumerate(shape):
                if n > 1 and not any(f.shape[axis] > 1 for f in fields):
                    self.meets_fixed(merged, axis + lead)
        return merged

    def merge(self, merged: list[Tensor], labels: Tensor) -> list[Tensor]:
        """Adds labels to those of other operands, and unites them where they vary along the same axes."""
        mine = set(axes_of(labels))
        for i, other in enumerate(merged):
            theirs = set(axes_of(other))
            if mine == theirs:
                self.labels.unite(labels, other)
                return merged
            if mine < theirs and len(mine) == 1:
                self.block(other, {a: compact(labels) for a in mine})
                return merged
            if theirs < mine and len(theirs) == 1:
                self.block(labels, {a: compact(other) for a in theirs})
                return self.merge(merged[:i] + merged[i + 1 :], labels)
            if common := mine & theirs:
                if len(common) > 1:
                    self.labels.fix(labels)
                    self.labels.fix(other)
                    continue
                (axis,) = common
                group = self.labels.fresh(labels.shape[axis])
                for part in (labels, other):
                    self.block(part, {axis: group}, shared=(axis, group))
        return [*merged, labels]

    def meets_fixed(self, merged: list[Tensor], axis: int) -> None:
        """An operand that can't be cut along an axis keeps the others from it."""
        for labels in merged:
            if labels.shape[axis] > 1:
                if len(axes_of(labels)) == 1:
                    self.labels.fix(labels)
                else:
                    self.block(labels, locked=(axis,))

    def reduce(
        self,
        fields: Iterable[Tensor],
        axes: Sequence[int],
        keep: bool = False,
        prefer: bool = False,
    ) -> list[Tensor]:
        """The labels of a sum over axes; what is left of a grid are the labels of its slices.

        Args:
            fields: of the summands.
            axes: that are summed over.
            keep: whether they stay with size one.
            prefer: whether grids are rather cut along the axis that is left.
        """
        found: list[Tensor | None] = []
        for labels in fields:
            left = [a for a in axes_of(labels) if a not in axes]
            gone = [a for a in axes_of(labels) if a in axes]
            if gone and len(left) == 1:
                slices = self.fresh_slices(labels, left[0])
                self.block(labels, {left[0]: slices}, prefer=left[0] if prefer else None)
                labels = slices.reshape(along(len(slices), left[0], labels.dim()))
            elif gone and left:
                self.labels.fix(labels)
                continue
            elif not left:
                continue
            if not keep:
                labels = labels.reshape([n for i, n in enumerate(labels.shape) if i not in axes])
            found.append(tidy(labels))
        return [f for f in found if f is not None]
