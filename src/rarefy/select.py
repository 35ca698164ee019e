# SPDX-License-Identifier: Apache-2.0
"""Which weights a step works on: layers by glob, regular expression, type or index."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.errors import RecipeError, nearest

Pattern: TypeAlias = str | int
NORM = re.compile(r"Norm(\dd)?(Act)?(\dd)?$")
SHOWN = 24  # names that an error lists at most


@dataclass(frozen=True)
class Layer:
    """A weight that a step may change.

    Attributes:
        name: dotted path of the module.
        module: that holds the weight.
        tensor: attribute under which it holds it.
        index: place in the list of all layers of the network; may be used as a pattern.
    """

    name: str
    module: nn.Module
    tensor: str = "weight"
    index: int = 0

    @property
    def path(self) -> str:
        """The module's path, with the tensor's name where it is not called `weight`: one for each weight."""
        return self.name if self.tensor == "weight" else f"{self.name}.{self.tensor}"

    @property
    def weight(self) -> Tensor:
        """The weight as the network uses it now, forms applied."""
        return getattr(self.module, self.tensor)

    @property
    def stored(self) -> nn.Parameter:
        """The parameter that an optimiser moves: the weight, or what its forms are made of."""
        return stored_parameter(self.module, self.tensor)


def select(
    model: nn.Module,
    patterns: Pattern | Iterable[Pattern] = "*",
    *,
    exclude: Pattern | Iterable[Pattern] = (),
    kinds: tuple[type[nn.Module], ...] | None = None,
) -> list[Layer]:
    """The layers that match any of `patterns` and none of `exclude`, in the order of registration.

    A pattern is a glob on the dotted path (``"layer1.*"``; ``*`` also spans dots), ``"re:…"`` (a
    regular expression that must match the whole path), ``"type:Conv2d"`` (a class or one of its
    bases), an integer (the index that `describe` lists; negative ones count from the end),
    ``"first"`` or ``"last"``. ``"encoder.attention.in_proj_weight"`` and ``"rnn.weight_*"`` name
    tensors that are not called `weight`.

    By default all convolutions, linear layers and other modules with a floating-point `weight` of
    two or more axes are meant. Embeddings, weights tied to them, and recurrent networks are left out
    unless their path is spelled out or their type is asked for; norms are never listed. A weight that
    several modules share is listed once.

    Args:
        model: is not changed.
        patterns: one or several.
        exclude: patterns of layers to leave out.
        kinds: if given, only modules of these classes.

    Raises:
        RecipeError: a pattern that matches nothing, or nothing is left.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
        >>> [layer.name for layer in select(model, exclude="last")]
        ['0']
    """
    every = [
        layer for layer in candidates(model) if kinds is None or isinstance(layer.module, kinds)
    ]
    if not every:
        wanted = " of the kinds that this step works on" if kinds else ""
        raise RecipeError(f"{type(model).__name__} holds no weight of two or more axes{wanted}")
    chosen = chosen_by(patterns, every, "layers")
    left = chosen - chosen_by(exclude, every, "exclude")
    if not left:
        raise RecipeError(
            f"layers={patterns!r} with exclude={exclude!r} leaves no layer to work on"
        )
    order = {module: place for place, module in enumerate(model.modules())}
    return sorted(left, key=lambda layer: (order[layer.module], layer.index))


def describe(layers: Iterable[Layer]) -> list[dict[str, Any]]:
    """A dry run: what a step would touch, one row a layer: index, name, type, shape, parameters."""
    return [
        {
            "index": layer.index,
            "name": layer.path,
            "type": type(layer.module).__name__.removeprefix("Parametrized"),
            "shape": list(layer.weight.shape),
            "parameters": layer.weight.numel(),
        }
        for layer in layers
    ]


def sharing(model: nn.Module, layer: Layer) -> list[Layer]:
    """The layer and all others that hold the very same parameter (tied weights)."""
    held = stored_parameter(layer.module, layer.tensor)
    return [
        Layer(path, module, name, layer.index)
        for path, module, name in held_weights(model)
        if stored_parameter(module, name) is held
    ]


def candidates(model: nn.Module) -> list[Layer]:
    """All layers that can be selected: those meant by default, then what must be asked for."""
    seen: set[int] = set()
    usual: list[Layer] = []
    special: list[Layer] = []
    for path, module, name in held_weights(model):
        layer = Layer(path, module, name)
        if id(layer.stored) not in seen:
            seen.add(id(layer.stored))
            (usual if is_usual(layer) else special).append(layer)
    return [replace(layer, index=index) for index, layer in enumerate((*usual, *special))]


def held_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every floating-point parameter of two or more axes but norms': (path, module, attribute)."""
    for path, module in model.named_modules():
        if "parametrizations" in path.split(".") or is_norm(module):
            continue
        dressed = list(module.parametrizations) if parametrize.is_parametrized(module) else []
        plain = [name for name, held in module._parameters.items() if held is not None]
        for name in (*plain, *dressed):
            weight = getattr(module, name)
            if weight.is_floating_point() and weight.dim() >= 2:
                yield path, module, name


def stored_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter behind a weight, whatever forms it wears."""
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name].original  # type: ignore[index, union-attr]
    return module._parameters[name]  # type: ignore[return-value]


def is_norm(module: nn.Module) -> bool:
    """Whether a module, or a class that it descends from, is a normalisation."""
    return any(NORM.search(name) for name in class_names(module))


def is_embedding(module: nn.Module) -> bool:
    """Whether a module looks rows up instead of multiplying."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def chosen_by(patterns: Pattern | Iterable[Pattern], layers: list[Layer], role: str) -> set[Layer]:
    """The layers that match any of the patterns; every pattern must match something."""
    listed = (patterns,) if isinstance(patterns, (str, int)) else tuple(patterns)
    found: set[Layer] = set()
    for pattern in listed:
        matching = matches(pattern, layers)
        if not matching:
            raise RecipeError(f"{role}: '{pattern}' matches no layer{hint(pattern, layers)}")
        found.update(matching)
    return found


def matches(pattern: Pattern, layers: list[Layer]) -> list[Layer]:
    """The layers that one pattern names."""
    usual = [layer for layer in layers if is_usual(layer)]
    if isinstance(pattern, int):
        if pattern < 0:
            return usual[pattern : pattern + 1 or None] if -pattern <= len(usual) else []
        return [layer for layer in layers if layer.index == pattern]
    if spelled := [x for x in layers if pattern in spellings(x)]:
        return spelled
    if pattern in ("first", "last"):
        return usual[:1] if pattern == "first" else usual[-1:]
    if pattern.startswith("type:"):
        wanted = pattern.removeprefix("type:")
        return [x for x in layers if named_by_module(x) and wanted in class_names(x.module)]
    path, _, tensor = pattern.rpartition(".")
    named = [x for x in layers if names_tensor(x, tensor) and fnmatchcase(x.name, path)]
    fits = matcher(pattern)
    return named or [layer for layer in usual if fits(layer.name)]


def names_tensor(layer: Layer, pattern: str) -> bool:
    """Whether a pattern's last part means a tensor that is not called `weight`; recurrent ones by glob."""
    if isinstance(layer.module, nn.RNNBase) and pattern.startswith("weight_"):
        return fnmatchcase(layer.tensor, pattern)
    return layer.tensor == pattern != "weight"


def named_by_module(layer: Layer) -> bool:
    """Whether the module's name alone means the weight."""
    return layer.tensor == "weight" or isinstance(layer.module, nn.RNNBase)


def is_usual(layer: Layer) -> bool:
    """Whether a layer is meant where nothing particular is asked for."""
    return layer.tensor == "weight" and not is_embedding(layer.module)


def spellings(layer: Layer) -> set[str]:
    """The ways to write a layer's path in full."""
    whole = f"{layer.name}.{layer.tensor}"
    return {whole, layer.name} if named_by_module(layer) else {whole}


def class_names(module: nn.Module) -> list[str]:
    """The names of a module's class and of the classes that it descends from."""
    return [kind.__name__ for kind in type(module).__mro__]


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path fits a glob or, behind ``re:``, a regular expression."""
    if not pattern.startswith("re:"):
        return lambda path: fnmatchcase(path, pattern)
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise RecipeError(f"'{pattern}' is no regular expression: {error}") from None
    return lambda path: expression.fullmatch(path) is not None


def hint(pattern: Pattern, layers: list[Layer]) -> str:
    """What the user may have meant."""
    if isinstance(pattern, int):
        return f": the network has {len(layers)} layers, 0 to {len(layers) - 1}"
    if pattern.startswith("type:"):
        kinds = {type(x.module).__name__.removeprefix("Parametrized") for x in layers}
        return nearest(pattern.removeprefix("type:"), kinds)
    told = nearest(pattern, names := [layer.name for layer in layers])
    if told.startswith("; known") and len(names) > SHOWN:
        return f"{nearest(pattern, names[:SHOWN])} and {len(names) - SHOWN} more"
    return told
