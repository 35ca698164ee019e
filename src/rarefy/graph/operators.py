# SPDX-License-Identifier: Apache-2.0
"""What each operator of PyTorch does to the labels of its inputs.

Operators that only move values are run on the labels themselves; those that work position by position unite
what they join; a product of matrices or a convolution is a broadcast product, summed over an axis. What is
not listed is a barrier.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields, along, axes_of
from rarefy.graph.joins import combine, fresh_slices


def flat(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operator."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from flat(value)


@cache
def argument_names(func: Any) -> tuple[str, ...]:
    """The names of an operator's arguments."""
    return tuple(argument.name for argument in func._schema.arguments)


@dataclass(eq=False)
class Run:
    """One operator that ran.

    Attributes:
        func: the operator.
        values: its arguments by name, defaults left out.
        out: what it returned.
    """

    func: Any
    values: dict[str, Any]
    out: Any = None

    @classmethod
    def of(cls, func: Any, args: Any, kwargs: Any) -> "Run":
        """An operator that is about to run."""
        return cls(func, dict(zip(argument_names(func), args, strict=False)) | (kwargs or {}))

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    @cached_property
    def name(self) -> str:
        """The operator's name, whatever the overload."""
        return str(self.func.overloadpacket.__name__)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors that went in."""
        return list(flat(self.values.values()))

    @cached_property
    def results(self) -> list[Tensor]:
        """The tensors that came out."""
        return list(flat((self.out,)))


Rule = Callable[[Book, Run], None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers the rule of operators of these names, all overloads of them."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def spread(book: Book, run: Run) -> None:
    """Applies the rule of an operator to its results; without one it is a barrier."""
    results = [t for t in run.results if t.numel()]
    static = all(book.is_static(t) for t in run.tensors) and bool(run.tensors)
    if run.results and not results:
        book.fix(*run.tensors)  # nothing came out that could carry labels on
    if not results:
        return
    if not any(book.fields(t) for t in run.tensors):
        for result in results:
            book.put(result, ())
    elif (found := rule_of(run.func)) is not None:
        found(book, run)
    else:
        book.barrier(run.name, run.tensors)
        for result in results:
            book.put(result, ())
    if static:
        book.static.update(book.key(t) for t in results)


UNTAGGED = frozenset(
    {
        "_prelu_kernel",
        "addcdiv",
        "addcmul",
        "celu",
        "clamp",
        "complex",
        "elu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "lerp",
        "log_sigmoid_forward",
        "masked_fill",
        "mish",
        "polar",
        "rrelu_with_noise",
        "selu",
        "silu",
        "softplus",
        "softshrink",
        "threshold",
    }
)
"""Operators that work position by position although PyTorch does not say so of them."""


@cache
def rule_of(func: Any) -> Rule | None:
    """The rule for an operator, or for what it does in place."""
    name = func.overloadpacket.__name__
    base = name.removesuffix("_")
    found = RULES.get(name) or RULES.get(base)
    if found is not None:
        return found
    packets = [func.overloadpacket, getattr(torch.ops.aten, base, None)]
    if base in UNTAGGED:
        return pointwise
    for packet in packets:
        if packet is not None:
            tags = [getattr(packet, overload).tags for overload in packet.overloads()]
            if any(torch.Tag.pointwise in each for each in tags):
                return pointwise
    return None


def only(book: Book, tensor: Tensor, keep: Sequence[int]) -> Fields:
    """The labels of a tensor along given axes; along the others nothing can be cut."""
    return kept_on(book, book.fields(tensor), keep)


def kept_on(book: Book, fields: Fields, keep: Sequence[int]) -> Fields:
    """What is left of labels if nothing may be cut but along given axes.

    A grid that varies along one of these axes and along others may lose whole slices along the former.
    """
    kept = []
    for labels in fields:
        left = [a for a in axes_of(labels) if a in keep]
        gone = [a for a in axes_of(labels) if a not in keep]
        if not gone:
            kept.append(labels)
        elif len(left) == 1:
            slices = fresh_slices(book, labels, left[0])
            book.block(labels, {left[0]: slices}, locked=gone)
            kept.append(slices.reshape(along(len(slices), left[0], labels.dim())))
        else:
            book.labels.fix(labels)
    return tuple(kept)


def pointwise(book: Book, run: Run) -> None:
    """Results carry what their operands carry, and operands are cut alike."""
    inputs = [t for t in run.tensors if t.dim()]
    for out in run.results:
        merged = combine(book, [(book.fields(t), t.shape) for t in inputs], out.dim())
        book.put(out, merged)
