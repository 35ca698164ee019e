# SPDX-License-Identifier: Apache-2.0
"""Integers that remember where they came from, so that sizes wired into modules can be mended.

While the network runs once, every integer attribute of its modules is replaced by a `Number`, and so are
the sizes that a tensor tells. Arithmetic keeps the memory: when ``x.reshape(b, n, 3, self.heads, c //
self.heads)`` is seen, it is known which attributes the sizes are made of.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Attribute:
    """An integer that a module, or an object that it holds, keeps under a name, maybe in a tuple or list.

    Attributes:
        holder: identity of the object.
        name: of the attribute.
        index: in the tuple or list, if it is one.
        value: before any cut.
    """

    holder: int
    name: str
    index: int | None
    value: int


@dataclass(frozen=True, eq=False)
class Extent:
    """The number of positions along an axis of a tensor that carries labels.

    Attributes:
        fields: the tensor's labels.
        axis: of the tensor.
    """

    fields: tuple[Tensor, ...] = field(repr=False)
    axis: int


Source: TypeAlias = Attribute | Extent
Lookup: TypeAlias = Callable[[Source], int]


class Number(int):
    """An integer with the formula that it was computed by."""

    sources: frozenset[Source]
    formula: Callable[[Lookup], int]

    def __new__(
        cls, value: int, sources: frozenset[Source], formula: Callable[[Lookup], int]
    ) -> "Number":
        made = super().__new__(cls, value)
        made.sources, made.formula = sources, formula
        return made

    @classmethod
    def of(cls, value: int, source: Source) -> "Number":
        """A number that is read from somewhere."""
        return cls(value, frozenset({source}), lambda look: look(source))

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> "Number":
        return self


def formula_of(value: Any) -> Callable[[Lookup], int]:
    """How a number follows from its sources; a plain one is constant."""
    if isinstance(value, Number):
        return value.formula
    plain = int(value)
    return lambda look: plain


def sources_of(value: Any) -> frozenset[Source]:
    """What a number was made of."""
    return value.sources if isinstance(value, Number) else frozenset()


def arithmetic(function: Callable[[Any, Any], Any], reflected: bool) -> Callable[..., Any]:
    """The operator of `Number` for a function of two integers."""

    def apply(self: Number, other: Any) -> Any:
        if not isinstance(other, int):
            return getattr(int, f"__{function.__name__.strip('_')}__")(int(self), other)
        a, b = (other, self) if reflected else (self, other)
        first, second = formula_of(a), formula_of(b)
        value = function(int(a), int(b))
        if not isinstance(value, int):
            return value
        return Number(
            value,
            sources_of(a) | sources_of(b),
            lambda look: function(first(look), second(look)),
        )

    return apply


for name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Number, f"__{name}__", arithmetic(getattr(operator, name), False))
    setattr(Number, f"__r{name}__", arithmetic(getattr(operator, name), True))


def negative(self: Number) -> Number:
    """-self."""
    return Number(-int(self), self.sources, lambda look: -self.formula(look))


Number.__neg__ = negative  # type: ignore[assignment, method-assign]


def plain(value: Any) -> Any:
    """A structure with all numbers as plain integers."""
    if isinstance(value, Number):
        return int(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [plain(item) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, torch.Size):
        return torch.Size(int(item) for item in value)
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def whole(value: Any) -> bool:
    """Whether a value is an integer that may be a size."""
    return type(value) is int and value > 1


def numbered(value: Any, holder: int, name: str) -> Any:
    """The same value made of numbers, or None if it holds no sizes."""
    if whole(value):
        return Number.of(value, Attribute(holder, name, None, value))
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        return type(value)(
            Number.of(item, Attribute(holder, name, i, item)) if item > 1 else item
            for i, item in enumerate(value)
        )
    return None


PLAIN = frozenset(
    {int, bool, float, str, dict, list, tuple, set, type(None), torch.Size, OrderedDict}
)
"""Types of attributes that have no attributes of their own."""


def holders(model: nn.Module) -> dict[int, Any]:
    """The modules, and the plain objects that they hold (a configuration, say), by their identity."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        found[id(module)] = module
        for value in list(vars(module).values()):
            if type(value) in PLAIN:
                continue
            own = hasattr(value, "__dict__") and not isinstance(value, (type, Tensor, nn.Module))
            if own and not callable(value) and type(value).__module__.partition(".")[0] != "torch":
                found[id(value)] = value
    return found


@contextmanager
def remembering(model: nn.Module) -> Iterator[dict[int, Any]]:
    """Replaces the integer attributes of all modules by numbers meanwhile; gives the holders by identity."""
    places = holders(model)
    changed: list[tuple[dict[str, Any], str, Any, Any]] = []
    for number, holder in places.items():
        state = vars(holder)
        for name, value in list(state.items()):
            new = None if name.startswith("__") else numbered(value, number, name)
            if new is not None:
                state[name] = new
                changed.append((state, name, value, new))
    try:
        yield places
    finally:
        for state, name, value, new in changed:
            if state.get(name) is new:
                state[name] = value
        for holder in places.values():  # what the network computed from its sizes and kept
            state = vars(holder)
            state.update({n: plain(v) for n, v in state.items() if isinstance(v, Number)})
