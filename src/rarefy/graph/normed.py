# SPDX-License-Identifier: Apache-2.0
"""What norms do to labels."""

from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.fields import along, axes_of
from rarefy.graph.joins import combine
from rarefy.graph.operators import Run, only, rule
from rarefy.graph.products import vector


def normed(book: Book, run: Run, x: Tensor, parameters: list[Tensor | None], axis: int) -> None:
    """Channels of a norm are cut with its scale, shift and statistics."""
    operands = [(book.fields(x), list(x.shape))]
    for p in parameters:
        if p is not None:
            shape = along(p.numel(), axis, x.dim()) if p.dim() == 1 else list(p.shape)
            fields = book.fields(p)
            if p.dim() == 1:
                fields = tuple(f.reshape(shape) for f in fields)
            operands.append((fields, shape))
    merged = combine(book, operands, x.dim())
    book.put(run.results[0], merged)
    for other in run.results[1:]:
        book.put(other, ())


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_impl_index",
    "batch_norm",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
)
def batch_normed(book: Book, run: Run) -> None:  # fmt: skip
    """Over batch and space; statistics that it takes itself are those of the positions that stay.

    Standardised weights are such a batch norm: of a kernel whose inputs lie along the last axis.
    """
    x = run["input"]
    if run["training"]:
        for labels in book.fields(x):
            if len(axes_of(labels)) > 1:
                book.labels.fix(labels)
    normed(book, run, x, [run["weight"], run["bias"], run["running_mean"], run["running_var"]], 1)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_normed(book: Book, run: Run) -> None:
    """Over the last axes."""
    x = run["input"]
    normed(book, run, x, [run["weight"], run["bias"]], x.dim() - 1)


@rule("native_group_norm")
def group_normed(book: Book, run: Run) -> None:
    """Over groups of channels: rather whole groups go, whose statistics nobody else's depend on."""
    x, groups = run["input"], run["group"]
    normed(book, run, x, [run["weight"], run["bias"]], 1)
    channels = vector(only(book, run.results[0], [1]), 1)
    book.groups = None
    if channels is not None and groups > 1:
        book.groups = book.labels.fresh(groups)
        book.block(channels.reshape(groups, -1), {0: book.groups}, prefer=0)


@rule("_weight_norm_interface")
def weight_normed(book: Book, run: Run) -> None:
    """A direction and its length per output."""
    v, g = run["v"], run["g"]
    book.put(
        run.results[0],
        combine(book, [(book.fields(v), v.shape), (book.fields(g), g.shape)], v.dim()),
    )
    book.put(run.results[1], book.fields(g))
