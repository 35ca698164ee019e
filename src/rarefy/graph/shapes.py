# SPDX-License-Identifier: Apache-2.0
"""What operators that move, join or pick positions do to labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.fields import along, axes_of, regroup, replay, runs
from rarefy.graph.joins import combine, cross
from rarefy.graph.operators import Run, only, rule


@rule(
    "permute", "transpose", "t", "expand", "slice", "select", "split",
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "unsqueeze",
    "squeeze", "alias", "detach", "unfold", "diagonal", "flip", "roll", "repeat",
    "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "movedim", "narrow",
    "narrow_copy", "rot90",
)  # fmt: skip
def moved(book: Book, run: Run) -> None:
    """The operator is run on the labels."""
    x = run["self"]
    rest = {key: value for key, value in run.values.items() if key != "self"}
    found: list[list[Tensor | None]] = [
        replay(labels, x.shape, lambda full: run.func(full, **rest)) for labels in book.fields(x)
    ]
    for i, out in enumerate(run.results):
        book.put(out, [labels[i] for labels in found])


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def viewed(book: Book, run: Run) -> None:
    """Axes are joined and split; what is split must stay a rectangle."""
    old, new = run["self"].shape, run.out.shape
    joined = [range(start, stop) for start, stop, _, _ in runs(old, new) if stop - start > 1]
    fields = [regroup(f, old, new) for f in cross(book, book.fields(run["self"]), joined)]
    book.put(run.out, fields)
    for labels in fields:
        if labels is not None and len(axes_of(labels)) > 1 and not book.sized:
            book.block(labels)


@rule(
    "clone", "_to_copy", "contiguous", "lift_fresh", "dropout", "native_dropout",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "bernoulli", "tril", "triu", "zero", "fill", "normal", "uniform",
)  # fmt: skip
def same(book: Book, run: Run) -> None:
    """The result has the positions of the first operand."""
    for out in run.results:
        same_shape = out.shape == run.tensors[0].shape
        book.put(out, book.fields(run.tensors[0]) if same_shape else ())


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def made(book: Book, run: Run) -> None:
    """Constants have no labels of the tensor that they take their type from."""
    book.put(run.out, ())


@rule("copy_", "copy")
def copied(book: Book, run: Run) -> None:
    """What is written over must be cut as what is written."""
    target, source = run["self"], run["src"]
    lead = target.dim()
    merged = combine(book, [(book.fields(t), t.shape) for t in (target, source)], lead)
    book.put(target, merged)
    book.put(run.out, merged)


@rule("cat", "stack")
def joined(book: Book, run: Run) -> None:
    """Labels stand side by side; along the other axes the parts are cut alike."""
    # torch lets an empty vector stand beside tensors of any shape
    parts, out = [t for t in run["tensors"] if tuple(t.shape) != (0,)], run.out
    axis = (run["dim"] or 0) % out.dim()
    if run.name == "stack":
        lifted = [
            (tuple(f.unsqueeze(axis) for f in book.fields(t)), t.unsqueeze(axis)) for t in parts
        ]
    else:
        lifted = [(book.fields(t), t) for t in parts]
    shape = list(out.shape)
    shape[axis] = 1
    across = [([f for f in fields if f.shape[axis] == 1], shape) for fields, _ in lifted]
    merged = combine(book, across, out.dim())  # type: ignore[arg-type]
    crossing = [[f for f in fields if f.shape[axis] > 1] for fields, _ in lifted]
    if any(crossing):
        merged += side_by_side(book, [t.shape for _, t in lifted], crossing, axis)
    book.put(out, merged)


def side_by_side(
    book: Book, shapes: list[Any], crossing: list[list[Tensor]], axis: int
) -> list[Tensor]:
    """The labels along the axis of a concatenation; a part without any holds fixed positions."""
    dims = len(shapes[0])
    varying = sorted({a for fields in crossing for f in fields for a in axes_of(f)} - {axis})
    full = [1] * dims
    for a in varying:
        full[a] = shapes[0][a]
    columns = []
    for shape, fields in zip(shapes, crossing, strict=True):
        for extra in fields[1:]:
            book.labels.fix(extra)
        full[axis] = shape[axis]
        labels = fields[0] if fields else torch.full([1] * dims, -1)
        columns.append(labels.expand(full))
    return [torch.cat(columns, axis)]


@rule("constant_pad_nd")
def padded(book: Book, run: Run) -> None:
    """Padded positions are fixed."""
    x, pad = run["self"], run["pad"]
    fields = []
    for labels in book.fields(x):
        touched = [x.dim() - 1 - i // 2 for i, n in enumerate(pad) if n]
        if any(labels.shape[a] > 1 for a in touched):
            fields.append(torch.nn.functional.pad(labels.expand(x.shape), pad, value=-1))
        else:
            fields.append(labels)
    book.put(run.out, fields)


@rule("index_select")
def picked(book: Book, run: Run) -> None:
    """Positions are picked along one axis, where nothing can be cut then."""
    axis = run["dim"] % run["self"].dim()
    keep = [a for a in range(run["self"].dim()) if a != axis]
    book.fix(run["index"])
    book.put(run.out, only(book, run["self"], keep))


def looked_at(indices: Sequence[Tensor | None]) -> list[int]:
    """The axes that an index uses up; a mask of several axes uses as many."""
    used, axis = [], 0
    for index in indices:
        n = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        used += [axis + i for i in range(n) if index is not None]
        axis += n
    return used


@rule("index")
def indexed(book: Book, run: Run) -> None:
    """Positions are looked up along some axes, where nothing can be cut then; the others keep labels."""
    x, used = run["self"], looked_at(run["indices"])
    book.fix(*(t for t in run["indices"] if t is not None))
    left = [a for a in range(x.dim()) if a not in used]
    together = used == list(range(used[0], used[0] + len(used)))
    start = used[0] if together else 0
    before, after = [a for a in left if a < start], [a for a in left if a >= start]
    inserted = [1] * (run.out.dim() - len(left))
    found = [
        f.reshape([f.shape[a] for a in before] + inserted + [f.shape[a] for a in after])
        for f in only(book, x, left)
    ]
    book.put(run.out, found)


@rule("index_put", "_index_put_impl")
def put_in(book: Book, run: Run) -> None:
    """What is written at some places of the first axes must be cut as what stays there along the others."""
    x, values, used = run["self"], run["values"], looked_at(run["indices"])
    rest = x.dim() - len(used)
    book.fix(*(t for t in run["indices"] if t is not None))
    if used != list(range(len(used))):
        book.fix(x, values)
        book.put(run.out, ())
        return
    old = only(book, x, range(x.dim() - rest, x.dim()))
    new = only(book, values, range(values.dim() - min(rest, values.dim()), values.dim()))
    lead = max(x.dim(), values.dim())
    sizes = [1] * (values.dim() - rest) + list(values.shape[max(values.dim() - rest, 0) :])
    merged = combine(
        book, [(old, [1] * len(used) + list(x.shape[len(used) :])), (new, sizes)], lead
    )
    book.put(run.out, [f.reshape(f.shape[lead - x.dim() :]) for f in merged])


@rule("embedding", "_embedding_bag")
def looked_up(book: Book, run: Run) -> None:
    """Rows are looked up; their columns keep their labels."""
    book.fix(*(t for t in run.tensors if t is not run["weight"]))
    dims = run.results[0].dim()
    fields = only(book, run["weight"], [1])
    for labels in fields:
        book.role(labels, "out")
    for other in run.results[1:]:
        book.put(other, ())
    book.put(run.results[0], [f.reshape(along(f.numel(), dims - 1, dims)) for f in fields])


@rule("gather", "take_along_dim")
def gathered(book: Book, run: Run) -> None:
    """Positions are picked along one axis; along the others the index is cut alike."""
    x, index, axis = run["self"], run["index"], run["dim"] % run["self"].dim()
    keep = [a for a in range(x.dim()) if a != axis]
    fields = only(book, x, keep)
    book.put(
        run.out,
        combine(book, [(fields, run.out.shape), (only(book, index, keep), index.shape)], x.dim()),
    )


@rule("glu")
def gated(book: Book, run: Run) -> None:
    """One half of the axis gates the other."""
    x = run["self"]
    axis = (-1 if run["dim"] is None else run["dim"]) % x.dim()
    halves = [[f.narrow(axis, i * f.shape[axis] // 2, f.shape[axis] // 2) if f.shape[axis] > 1 else f
               for f in book.fields(x)] for i in (0, 1)]  # fmt: skip
    book.put(run.out, combine(book, [(tuple(h), run.out.shape) for h in halves], x.dim()))
