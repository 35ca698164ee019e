# SPDX-License-Identifier: Apache-2.0
"""How labels of several tensors meet: in sums and products, along axes that are summed over or joined."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields, along, axes_of, compact, tidy


def combine(
    book: Book, operands: Sequence[tuple[Fields, Sequence[int]]], dims: int
) -> list[Tensor]:
    """The labels of a broadcast product or sum, after uniting what must stay equal.

    Args:
        operands: fields and shapes, aligned at the last axis.
        dims: axes of the result.
    """
    merged: list[Tensor] = []
    for fields, _ in operands:
        for labels in fields:
            merged = merge(
                book, merged, labels.reshape((1,) * (dims - labels.dim()) + labels.shape)
            )
    for fields, shape in operands:
        lead = dims - len(shape)
        for axis, n in enumerate(shape):
            if n > 1 and not any(f.shape[axis] > 1 for f in fields):
                meets_fixed(book, merged, axis + lead)
    return merged


def merge(book: Book, merged: list[Tensor], labels: Tensor) -> list[Tensor]:
    """Adds labels to those of other operands, and unites them where they vary along the same axes."""
    mine = set(axes_of(labels))
    for i, other in enumerate(merged):
        theirs = set(axes_of(other))
        if mine == theirs:
            book.labels.unite(labels, other)
            return merged
        if mine < theirs and len(mine) == 1:
            book.block(other, {a: compact(labels) for a in mine}, prefer=min(mine), rank=1)
            return merged
        if theirs < mine and len(theirs) == 1:
            book.block(labels, {a: compact(other) for a in theirs}, prefer=min(theirs), rank=1)
            return merge(book, merged[:i] + merged[i + 1 :], labels)
        if common := mine & theirs:
            if len(common) > 1:
                book.labels.fix(labels)
                book.labels.fix(other)
                continue
            (axis,) = common
            group = book.labels.fresh(labels.shape[axis])
            for part in (labels, other):
                book.block(part, {axis: group}, shared=(axis, group))
    return [*merged, labels]


def meets_fixed(book: Book, merged: list[Tensor], axis: int) -> None:
    """An operand that can't be cut along an axis keeps the others from it."""
    for labels in merged:
        if labels.shape[axis] > 1:
            if len(axes_of(labels)) == 1:
                book.labels.fix(labels)
            else:
                book.block(labels, locked=(axis,))


def reduce(
    book: Book,
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
            slices = fresh_slices(book, labels, left[0])
            book.block(
                labels,
                {left[0]: slices},
                prefer=left[0] if prefer else None,
                rank=0 if prefer else 2,
            )
            labels = slices.reshape(along(len(slices), left[0], labels.dim()))
        elif gone and left:
            book.labels.fix(labels)
            continue
        elif not left:
            continue
        if not keep:
            labels = labels.reshape([n for i, n in enumerate(labels.shape) if i not in axes])
        found.append(tidy(labels))
    return [f for f in found if f is not None]


def fresh_slices(book: Book, labels: Tensor, axis: int) -> Tensor:
    """New labels for whole slices along an axis, the same one for slices that are alike, shape (n,)."""
    rows = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    _, which = rows.unique(dim=0, return_inverse=True)
    return book.labels.fresh(int(which.max()) + 1)[which]


def cross(book: Book, fields: Fields, spans: Iterable[range]) -> Fields:
    """Labels of axes that are about to be joined, each with labels of its own, become one grid.

    Args:
        fields: of a tensor.
        spans: runs of its axes that are joined.
    """
    for span in spans:
        inside = [f for f in fields if len(axes_of(f)) == 1 and axes_of(f)[0] in span]
        if len({axes_of(f) for f in inside}) == len(inside) > 1:
            shape = [n if n > 1 else 1 for n in torch.broadcast_shapes(*(f.shape for f in inside))]
            grid = book.labels.fresh(math.prod(shape)).reshape(shape)
            by_axis = {axes_of(f)[0]: compact(f) for f in inside}
            book.block(grid, by_axis, prefer=min(by_axis))
            fields = (*(f for f in fields if all(f is not i for i in inside)), grid)
    return fields
