# SPDX-License-Identifier: Apache-2.0
"""What products of matrices, convolutions and pooling do to labels."""

from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields, along, axes_of, compact
from rarefy.graph.joins import combine, reduce
from rarefy.graph.operators import Run, kept_on, only, rule


def note_roles(book: Book, tensor: Tensor, summed: int) -> None:
    """Remembers which axis of a parameter is summed over, and that the others name outputs."""
    if book.is_static(tensor):
        for labels in book.fields(tensor):
            if len(axes_of(labels)) == 1:
                book.role(labels, "in" if axes_of(labels)[0] == summed else "out")


def lifted(book: Book, tensor: Tensor, at: int) -> tuple[Fields, list[int]]:
    """Fields and shape of an operand with an axis of size one put in before the axis `at`."""
    fields = tuple(f.unsqueeze(at) for f in book.fields(tensor))
    return fields, list(tensor.unsqueeze(at).shape)


def add(book: Book, out: Tensor, fields: list[Tensor], term: Tensor | None) -> None:
    """Puts the labels of a product to which another tensor is added."""
    if term is not None:
        sides = (tuple(fields), out.shape), (book.fields(term), term.shape)
        fields = combine(book, sides, out.dim())
    book.put(out, fields)


@rule("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot")
def multiplied(book: Book, run: Run) -> None:
    """Rows of the first, columns of the second, and what is between them cut alike."""
    tensors = list(run.tensors)
    term = tensors.pop(0) if len(tensors) == 3 else None
    a, b = tensors
    matrix = b.dim() > 1
    note_roles(book, a, a.dim() - 1)
    note_roles(book, b, b.dim() - 2 if matrix else 0)
    left = lifted(book, a, a.dim()) if matrix else (book.fields(a), list(a.shape))
    right = lifted(book, b, b.dim() - 2) if matrix else (book.fields(b), list(b.shape))
    dims = max(len(left[1]), len(right[1]))
    merged = combine(book, (left, right), dims)
    summed = dims - (2 if matrix else 1)
    add(book, run.out, reduce(book, merged, [summed], prefer=True), term)


@rule("_grouped_mm")
def expertly_multiplied(book: Book, run: Run) -> None:
    """Rows go to one of several matrices each (experts), which are all cut alike."""
    a, b = run["self"], run["mat2"]
    if (a.dim(), b.dim()) != (2, 3):
        book.barrier(run.name, run.tensors)
        book.put(run.out, ())
        return
    note_roles(book, b, 1)
    right = tuple(f.reshape(f.shape[1:]).unsqueeze(0) for f in only(book, b, [1, 2]))
    left = lifted(book, a, 2)
    merged = combine(book, (left, (right, [1, *b.shape[1:]])), 3)
    add(book, run.out, reduce(book, merged, [1]), run["bias"])


@rule("convolution", "_convolution")
def convolved(book: Book, run: Run) -> None:
    """Input channels meet the kernel's within each group; the kernel names the output channels."""
    x, w, groups = run["input"], run["weight"], run["groups"]
    backwards = bool(run["transposed"])
    note_roles(book, w, 0 if backwards else 1)
    single = single_axes(run)
    passing = [f for f in book.fields(x) if set(axes_of(f)) <= single]
    met = tuple(f for f in book.fields(x) if not set(axes_of(f)) <= single)
    channels = vector(kept_on(book, met, [1]), 1)
    first, second = (vector(only(book, w, [0, 1]), axis) for axis in (0, 1))
    n_out = run.out.shape[1]
    if backwards:
        meet(book, channels, first)
        out = second if groups == 1 else book.labels.fresh(n_out)
        out = grouped(book, channels, out, groups, outputs=second) if groups > 1 else out
    elif groups == 1:
        meet(book, channels, second)
        out = first
    else:
        out = grouped(book, channels, first, groups, inputs=second)
    found = [] if out is None else [out.reshape(along(n_out, 1, run.out.dim()))]
    bias = run["bias"]
    if bias is not None:
        bias_fields = tuple(f.reshape(along(n_out, 1, run.out.dim())) for f in book.fields(bias))
        sides = (tuple(found), run.out.shape), (bias_fields, along(n_out, 1, run.out.dim()))
        found = combine(book, sides, run.out.dim())
    book.put(run.out, [*found, *passing])


def single_axes(run: Run) -> set[int]:
    """The axes of a convolution's input along which every position is worked on by itself."""
    window = zip(run["weight"].shape[2:], run["stride"], run["padding"], strict=True)
    return {2 + i for i, each in enumerate(window) if each == (1, 1, 0)}


def vector(fields: Fields, axis: int) -> Tensor | None:
    """The labels along one axis, shape (n,), or None if there are none."""
    return next((compact(f) for f in fields if axes_of(f) == (axis,)), None)


def meet(book: Book, a: Tensor | None, b: Tensor | None) -> None:
    """Two axes of equal length that must be cut alike; one without labels is fixed."""
    if a is not None and b is not None:
        book.labels.unite(a, b)
    elif (known := a if a is not None else b) is not None:
        book.labels.fix(known)


def grouped(
    book: Book, channels: Tensor | None, out: Tensor | None, groups: int, *,
    inputs: Tensor | None = None, outputs: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """Ties the channels of a grouped convolution: whole groups go, or equally many channels of each.

    Args:
        channels: labels of the input's channels, shape (groups · a,), or None if they are fixed.
        out: labels of the output's channels, shape (groups · o,).
        groups: how many.
        inputs: labels of the kernel's input axis, shape (a,); it serves all groups.
        outputs: labels of the kernel's output axis, shape (o,), of a transposed convolution.

    Returns:
        The labels of the output's channels; `book.groups` keeps those of the groups.
    """
    group = book.labels.fresh(groups)
    book.groups = group
    if channels is None:
        book.labels.fix(group)
        if inputs is not None:
            book.labels.fix(inputs)
    else:
        grid = channels.reshape(groups, -1)
        slices = {0: group} | ({1: inputs} if inputs is not None else {})
        shared = (0, group) if out is not None and len(out) > groups else None
        book.block(grid, slices, shared=shared)
    if out is not None:
        slices = {0: group} | ({1: outputs} if outputs is not None else {})
        many = channels is not None and len(channels) > groups
        book.block(out.reshape(groups, -1), slices, shared=(0, group) if many else None)
    return out


@rule(
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "avg_pool1d", "max_pool1d", "avg_pool3d", "max_pool3d_with_indices",
    "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_linear1d",
    "upsample_trilinear3d", "upsample_nearest3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "grid_sampler_2d", "_adaptive_avg_pool1d",
    "adaptive_max_pool3d", "adaptive_max_pool1d", "_upsample_nearest_exact2d",
    "col2im", "im2col", "roi_align", "roi_pool",
)  # fmt: skip
def pooled(book: Book, run: Run) -> None:
    """Works in space; what varies over channels alone stays as it is."""
    x = run.tensors[0]
    channel = 1 if x.dim() > 2 else 0
    fields = only(book, x, [channel])
    for out in run.results:
        if out.dim() == x.dim() and out.shape[channel] == x.shape[channel]:
            book.put(out, fields)
        else:
            book.fix(x)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffled(book: Book, run: Run) -> None:
    """Channels become space or change places: the operator's positions are looked at one by one."""
    x = run["self"]
    factor = run["upscale_factor"] or run["downscale_factor"] or run["groups"]
    for labels in only(book, x, [1]):
        if run.name == "pixel_shuffle":
            grid = compact(labels).reshape(-1, factor * factor)
            book.labels.unite(grid[:, :1], grid)
            book.put(run.out, [grid[:, 0].reshape(along(len(grid), 1, x.dim()))])
        elif run.name == "pixel_unshuffle":
            wide = compact(labels).repeat_interleave(factor * factor)
            book.put(run.out, [wide.reshape(along(len(wide), 1, x.dim()))])
        else:
            grid = compact(labels).reshape(factor, -1)
            book.block(grid, locked=(0,))
            book.put(run.out, [grid.t().reshape(labels.shape)])
