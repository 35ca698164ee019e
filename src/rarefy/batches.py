# SPDX-License-Identifier: Apache-2.0
"""Tensors of a batch, and batches of a collection, each changed in the same way."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        return {key: mapped(value, change) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        kind = type(values)
        return getattr(kind, "_make", kind)(mapped(value, change) for value in values)
    return values


class _Changed:
    """What `changed` gives."""

    def __init__(self, batches: Any, change: Callable[[Any], Any]) -> None:
        self.batches, self.change = batches, change

    def __iter__(self) -> Iterator[Any]:
        return map(self.change, self.batches)


class _SizedChanged(_Changed):
    """The same of batches that can be counted."""

    def __len__(self) -> int:
        return len(self.batches)


def changed(batches: Iterable[Any], change: Callable[[Any], Any]) -> Iterable[Any]:
    """The same batches, each changed as it comes; they can be iterated as often as the given ones."""
    return (_SizedChanged if isinstance(batches, Sized) else _Changed)(batches, change)
