# SPDX-License-Identifier: Apache-2.0
"""Sizes that layers are told: groups of convolutions and norms, normalised shapes, heads of attention."""

import inspect
from typing import Any

from rarefy.graph.book import Book
from rarefy.graph.numbers import Number
from rarefy.graph.sizes import Wired, constraint, keep_along


@constraint(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)
def convolution(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """The number of groups counts groups."""
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    book.groups = None
    out = book.run(func, args, kwargs)
    count_groups(book, wired, groups, func.__name__)
    return out


@constraint("group_norm")
def group_norm(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """The number of groups counts groups."""
    groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 1)
    book.groups = None
    out = book.run(func, args, kwargs)
    count_groups(book, wired, groups, "group_norm")
    return out


def count_groups(book: Book, wired: list[Wired], groups: Any, name: str) -> None:
    """The groups of the call that just ran."""
    if book.groups is None:
        return
    if isinstance(groups, Number):
        wired.append(Wired(groups, (book.groups,), 0, name))
    else:
        book.labels.fix(book.groups)


@constraint("layer_norm", "rms_norm")
def layer_norm(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """The normalised shape counts the last axes."""
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    out = book.run(func, args, kwargs)
    for i, size in enumerate(shape):
        axis = out.dim() - len(shape) + i
        if isinstance(size, Number):
            wired.append(Wired(size, book.fields(out), axis, func.__name__))
        else:
            keep_along(book, out, axis)
    return out


@constraint("scaled_dot_product_attention")
def attention(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """Without a scale of its own the products are divided by a size, which must stay then."""
    if kwargs.get("scale") is None:
        for tensor in args[:2]:
            keep_along(book, tensor, tensor.dim() - 1)
    return book.run(func, args, kwargs)


@constraint("multi_head_attention_forward")
def multi_head(book: Book, wired: list[Wired], func: Any, args: Any, kwargs: Any) -> Any:
    """`nn.MultiheadAttention`: heads · their size is the embedding's, whatever was projected."""
    values = inspect.signature(func).bind(*args, **kwargs).arguments
    embedding, heads = values["embed_dim_to_check"], values["num_heads"]
    wired.append(
        Wired(embedding, book.fields(values["query"]), values["query"].dim() - 1, "attention")
    )
    packed = values["in_proj_weight"]
    weights = [packed, *(values.get(f"{k}_proj_weight") for k in "qkv")]
    for weight in (w for w in weights if w is not None):
        for labels in book.fields(weight):
            if labels.shape[0] > 1:
                grid = labels.reshape(-1, int(heads), int(embedding) // int(heads))
                book.block(grid, locked=(0, 2))
                parts = labels.reshape(-1, int(embedding))
                if isinstance(heads, Number):
                    wired.append(Wired(heads, (grid,), 1, "attention"))
                    wired.append(Wired(embedding, (parts,), 1, "attention"))
    return book.run(func, args, kwargs)
