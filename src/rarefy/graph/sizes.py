# SPDX-License-Identifier: Apache-2.0
"""Where the network's code writes sizes down: what must hold for them after a cut.

A size that comes from a tensor's shape follows by itself. One that comes from an attribute is mended. One
that stands in the code as a number keeps the channels that it counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields, axes_of
from rarefy.graph.numbers import Extent, Number


@dataclass(frozen=True, eq=False)
class Wired:
    """A size in the code, and the positions that it counts.

    Attributes:
        size: as the code computed it.
        fields: labels of a tensor.
        axis: of that tensor whose positions are counted.
        function: that was called with it.
    """

    size: Number
    fields: Fields
    axis: int
    function: str


Constraint: TypeAlias = Callable[[Book, list[Wired], Any, Any, Any], Any]
CONSTRAINTS: dict[str, Constraint] = {}


def constraint(*names: str) -> Callable[[Constraint], Constraint]:
    """Registers what functions of these names ask of their sizes."""

    def register(function: Constraint) -> Constraint:
        CONSTRAINTS.update(dict.fromkeys(names, function))
        return function

    return register


CONSTANTS = ("zeros", "ones", "empty", "full", "randn", "rand")
FACTORIES = (*CONSTANTS, "new_zeros", "new_ones", "new_full", "new_empty")


@constraint("view", "reshape", "unflatten", "expand", "broadcast_to", *FACTORIES)
def shaped(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """Every size counts the positions along one axis of the result."""
    name = func.__name__
    sizes = sizes_in(name, args, kwargs)
    book.sized = True
    try:
        out = book.run(func, args, kwargs)
    finally:
        book.sized = False
    if not isinstance(out, Tensor):
        return out
    if name in FACTORIES:
        label_new(book, out, sizes)
    elif name == "expand":
        label_grown(book, args[0], out, sizes)
    fields = book.fields(out)
    first = out.dim() - len(sizes)
    if name == "unflatten":
        first = (args[1] if len(args) > 1 else kwargs["dim"]) % args[0].dim()
    literal = set()
    for i, size in enumerate(sizes):
        axis = first + i
        if isinstance(size, Number):
            wired.append(Wired(size, fields, axis, name))
        elif size != -1 and out.shape[axis] > 1:
            literal.add(axis)
    for labels in fields:
        if len(axes_of(labels)) > 1 or literal & set(axes_of(labels)):
            book.block(labels, locked=literal)
            if set(axes_of(labels)) <= literal:
                note_literal(book, name, labels)
    return out


def note_literal(book: Book, name: str, labels: Tensor) -> None:
    """One line for the report: channels that are kept because the code counts them."""
    key = f"{name} with sizes written as numbers"
    book.barriers[key] = book.barriers.get(key, 0) + 1


def sizes_in(name: str, args: Any, kwargs: Any) -> list[Any]:
    """The sizes that a call names, in order."""
    if name in CONSTANTS:
        given = kwargs.get("size", args)
    elif name == "unflatten":
        given = args[2:] or (kwargs["sizes"],)
    else:
        given = args[1:] or (kwargs.get("size", kwargs.get("shape", ())),)
    if given and isinstance(given[0], (tuple, list)):
        given = given[0]
    return [n for n in given if not isinstance(n, torch.dtype)]


def label_new(book: Book, out: Tensor, sizes: Sequence[Any]) -> None:
    """A constant of a size that is not written as a number can be made smaller: its axes get labels."""
    book.put(out, ())
    for axis, size in enumerate(sizes):
        if isinstance(size, Number) and out.shape[axis] > 1:
            add_labels(book, out, axis)


def label_grown(book: Book, x: Tensor, out: Tensor, sizes: Sequence[Any]) -> None:
    """Copies along an axis, as many as an attribute says, can become fewer: the axis gets labels.

    Where the axis before it has several positions, as with grouped queries, whole positions of that one go.
    """
    lead = out.dim() - x.dim()
    for i, size in enumerate(sizes):
        axis = out.dim() - len(sizes) + i
        single = axis < lead or x.shape[axis - lead] == 1
        alone = axis == 0 or out.shape[axis - 1] == 1
        if isinstance(size, Number) and single and alone and out.shape[axis] > 1:
            add_labels(book, out, axis)


def add_labels(book: Book, out: Tensor, axis: int) -> None:
    """New labels along one axis of a tensor."""
    labels = book.labels.fresh(out.shape[axis])
    shape = [-1 if i == axis else 1 for i in range(out.dim())]
    book.put(out, (*book.fields(out), labels.reshape(shape)))


@constraint("tensor", "as_tensor", "scalar_tensor")
def valued(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """A size that becomes a value, to divide by its root say, keeps the positions that it counts."""
    for value in tree_leaves(args):
        if isinstance(value, Number):
            for source in value.sources:
                if isinstance(source, Extent):
                    keep_fields(book, source.fields, source.axis)
    return book.run(func, args, kwargs)


def keep_along(book: Book, x: Tensor, axis: int) -> None:
    """A place that is named by its number keeps the positions along the axis."""
    keep_fields(book, book.fields(x), axis)


def keep_fields(book: Book, fields: Fields, axis: int) -> None:
    """No position along an axis can be cut."""
    for labels in fields:
        if axes_of(labels) == (axis,):
            book.labels.fix(labels)
        elif labels.shape[axis] > 1:
            book.block(labels, locked=(axis,))
