# SPDX-License-Identifier: Apache-2.0
"""Which labels every tensor of a running network carries, and what joins them."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from rarefy.graph.fields import Fields, along, axes_of, compact, tidy
from rarefy.graph.labels import FIXED, Block, Labels
from rarefy.graph.numbers import plain

Key: TypeAlias = tuple[Any, ...]


def place_of(tensor: Tensor) -> Key:
    """The memory that a tensor looks at, and how; nobody else's as long as it is alive."""
    number = tensor.untyped_storage()._cdata
    return number, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


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
        ran: how many operators ran that look at all positions of an axis, as a mean does.
        path: a number that tells which operators ran, in order.
        shapes: of the network's outputs.
        counted: number of such an operator → its name, and the labels of its first operand.
        decided: keys of what came out of operators that decide, see `decisions.Deciding`.
        decides: whether the network reads any of that: the places of largest values, say, are often left.
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
        self.path = 0
        self.shapes: list[torch.Size] = []
        self.decided: set[Key] = set()
        self.decides = False
        self.counted: dict[int, tuple[str, Fields]] = {}
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
        key = place_of(tensor)
        if key[0] not in self.alive:
            self.alive[key[0]] = StorageWeakRef(tensor.untyped_storage())
        return key

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

    def barrier(self, name: str, tensors: Sequence[Tensor]) -> None:
        """An operator that nobody knows keeps what it reads."""
        if any(self.fields(t) for t in tensors):
            self.barriers[name] = self.barriers.get(name, 0) + 1
        self.fix(*tensors)

    def block(
        self, labels: Tensor, slices: dict[int, Tensor] | None = None, locked: Iterable[int] = (),
        shared: tuple[int, object] | None = None, prefer: int | None = None, rank: int = 2,
    ) -> None:  # fmt: skip
        """Labels that vary along several axes must stay a rectangle.

        Args:
            labels: of a tensor.
            slices: axis of the tensor → labels of whole slices along it, shape (n_axis,).
            locked: axes of the tensor along which nothing can be cut.
            shared, prefer, rank: see `labels.Block`, with the tensor's axes.
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
                rank,
            )
        )

    @cached_property
    def positions(self) -> tuple[list[tuple[str, int]], Tensor, Tensor, Tensor]:
        """Every position along every axis of all parameters and buffers.

        Returns:
            The axes (parameter, axis); and for each position the number of its axis, its place along it and
            its label, shapes (m,).
        """
        axes = [(name, axis) for name, each in self.parameters.items() for axis in range(len(each))]
        own = [each for axes_ in self.parameters.values() for each in axes_]
        sizes = torch.tensor([len(each) for each in own], dtype=torch.long)
        every = torch.cat([*own, torch.zeros(0, dtype=torch.long)])
        axis_of = torch.repeat_interleave(torch.arange(len(own)), sizes)
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        return axes, axis_of, torch.arange(len(every)) - starts, every

    def kept(self, removed: Tensor) -> dict[str, dict[int, Tensor]]:
        """What stays of the parameters and buffers that a cut touches: name → axis → positions.

        Args:
            removed: which labels go, shape (count + 1,); the last one stands for fixed positions.
        """
        axes, axis_of, _, every = self.positions
        found: dict[str, dict[int, Tensor]] = {}
        for number in axis_of[removed[every]].unique().tolist():
            name, axis = axes[number]
            stays = (~removed[self.parameters[name][axis]]).nonzero()[:, 0]
            found.setdefault(name, {})[axis] = stays
        return found

    def role(self, labels: Tensor, name: str) -> None:
        """Remembers what the parameters' axes that these labels were made for are used as."""
        first = int(labels.reshape(-1)[0])
        if first != FIXED:
            _, parameter, axis = self.homes[
                bisect_right(self.homes, first, key=lambda home: home[0]) - 1
            ]
            self.roles.setdefault((parameter, axis), name)
