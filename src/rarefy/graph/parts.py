# SPDX-License-Identifier: Apache-2.0
"""Sizes of parts: what must hold where the network's code splits, chunks or slices a tensor."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.numbers import Number, negative
from rarefy.graph.sizes import Wired, add_labels, constraint, keep_along


@constraint("split", "split_with_sizes", "tensor_split")
def divided(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """Each size counts the positions of one part; one size for all asks for parts of equal size."""
    outs = book.run(func, args, kwargs)
    named = next(
        (kwargs[k] for k in ("split_size_or_sections", "split_size", "split_sizes") if k in kwargs),
        None,
    )
    sizes = args[1] if len(args) > 1 else named
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    x = args[0]
    axis = dim % x.dim()
    if isinstance(sizes, int):
        equal_parts(book, x, axis, [out.shape[axis] for out in outs])
        if isinstance(sizes, Number) and outs:
            wired.append(Wired(sizes, book.fields(outs[0]), axis, "split"))
        else:
            keep_along(book, x, axis)
        return outs
    for size, out in zip(sizes or (), outs, strict=False):
        if isinstance(size, Number):
            wired.append(Wired(size, book.fields(out), axis, "split"))
        else:
            for labels in book.fields(out):
                if labels.shape[axis] > 1:
                    book.labels.fix(labels)
    return outs


@constraint("chunk")
def halved(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """The parts stay equally large."""
    outs = book.run(func, args, kwargs)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    axis = dim % args[0].dim()
    equal_parts(book, args[0], axis, [out.shape[axis] for out in outs])
    return outs


def equal_parts(book: Book, x: Tensor, axis: int, sizes: list[int]) -> None:
    """Parts of an axis that must stay equally large: positions go from all of them together."""
    for labels in book.fields(x):
        if labels.shape[axis] == 1:
            continue
        if len(set(sizes)) > 1:
            book.labels.fix(labels)
        elif len(sizes) > 1:
            parts = labels.unflatten(axis, (len(sizes), sizes[0]))
            book.block(parts, locked=(axis,))


@constraint("__getitem__", "narrow")
def sliced(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """A bound counts the positions before it."""
    x = args[0]
    out = book.run(func, args, kwargs)
    fields = book.fields(x)
    if not fields or func.__name__ == "narrow":
        return narrowed(book, wired, args, kwargs, out) if fields else out
    items = args[1] if isinstance(args[1], tuple) else (args[1],)
    used = sum(item is not None and item is not Ellipsis for item in items)
    axis = 0
    for item in items:
        if item is Ellipsis:
            axis = x.dim() - (used - axis)
            continue
        if isinstance(item, slice):
            bounds = [b for b in (item.start, item.stop) if b not in (None, 0)]
            count_before(book, wired, x, axis, bounds)
        elif isinstance(item, int):
            keep_along(book, x, axis)
        axis += item is not None
    return out


def count_before(
    book: Book, wired: list[Wired], x: Tensor, axis: int, bounds: Sequence[Any]
) -> None:
    """Every bound, if it can be mended, counts the positions before it; a plain number keeps them."""
    n = x.shape[axis]
    if not any(f.shape[axis] > 1 for f in book.fields(x)):
        return
    for bound in bounds:
        place = int(bound) + n if int(bound) < 0 else int(bound)
        if place >= n:
            if isinstance(bound, Number):
                wired.append(Wired(bound, book.fields(x), axis, "slice"))
        elif isinstance(bound, Number) and int(bound) < 0:
            after = tuple(
                f.narrow(axis, place, n - place) if f.shape[axis] > 1 else f for f in book.fields(x)
            )
            wired.append(Wired(negative(bound), after, axis, "slice"))
        elif isinstance(bound, Number) and int(bound) > 0:
            before = tuple(
                f.narrow(axis, 0, place) if f.shape[axis] > 1 else f for f in book.fields(x)
            )
            wired.append(Wired(bound, before, axis, "slice"))
        else:
            keep_along(book, x, axis)


def narrowed(book: Book, wired: list[Wired], args: Any, kwargs: Any, out: Tensor) -> Tensor:
    """A start and a length."""
    dim, start, length = (
        args[i] if len(args) > i else kwargs[name]
        for i, name in ((1, "dim"), (2, "start"), (3, "length"))
    )
    axis = dim % args[0].dim()
    count_before(book, wired, args[0], axis, [b for b in (start,) if int(b) != 0])
    if isinstance(length, Number):
        wired.append(Wired(length, book.fields(out), axis, "narrow"))
    elif out.shape[axis] < args[0].shape[axis]:
        keep_along(book, args[0], axis)
    return out


@constraint("repeat_interleave")
def repeated(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """Copies of the only position along an axis can become fewer."""
    out = book.run(func, args, kwargs)
    repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
    dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    if isinstance(repeats, Number) and dim is not None and args[0].shape[dim] == 1 and repeats > 1:
        axis = dim % out.dim()
        add_labels(book, out, axis)
        wired.append(Wired(repeats, book.fields(out), axis, "repeat_interleave"))
    return out
