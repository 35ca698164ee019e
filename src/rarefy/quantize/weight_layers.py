# SPDX-License-Identifier: Apache-2.0
"""Layers whose weights are rounded without calibration: products, look-ups and recurrences alike."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import nn

from rarefy.errors import RecipeError, nearest
from rarefy.forms.affine import Quantised
from rarefy.forms.shadow import find
from rarefy.loops.blocks import put_module
from rarefy.select import Layer, candidates, class_names, is_embedding, is_usual, matcher, select
from rarefy.step import Patterns


@dataclass(frozen=True)
class Chosen:
    """What a step works on.

    Attributes:
        layers: that hold one weight, embeddings among them.
        recurrent: torch's recurrent layers; the tensor is their first.
    """

    layers: list[Layer]
    recurrent: list[Layer]


def choose(model: nn.Module, layers: Patterns = "*", exclude: Patterns = ()) -> Chosen:
    """Layers by the patterns of `rarefy.select.select`; here they mean embeddings and recurrent layers too.

    Raises:
        RecipeError: a pattern that matches nothing, or nothing is left.
    """
    held = candidates(model)
    loops = [
        Layer(path, module, "weight_ih_l0", len(held) + number)
        for number, (path, module) in enumerate(
            (path, m) for path, m in model.named_modules() if isinstance(m, nn.RNNBase)
        )
    ]
    if not held and not loops:
        select(model)  # says that there is no weight at all
    every = [*held, *loops]
    left = meant(layers, every, "layers") - meant(exclude, every, "exclude")
    if not left:
        raise RecipeError(f"layers={layers!r} with exclude={exclude!r} leaves no layer to work on")
    return Chosen([x for x in held if x in left], [x for x in loops if x in left])


def tables_of(model: nn.Module, layers: Patterns = "*", exclude: Patterns = ()) -> list[Layer]:
    """Embeddings among the layers that patterns mean, without those that hold codes already."""
    chosen = choose(model, layers, exclude).layers
    return [
        x for x in chosen if is_embedding(x.module) and find(x.module, Quantised, x.tensor) is None
    ]


def meant(patterns: Patterns, every: list[Layer], role: str) -> set[Layer]:
    """The layers that any of the patterns means.

    Raises:
        RecipeError: a pattern that matches nothing.
    """
    found: set[Layer] = set()
    for pattern in (patterns,) if isinstance(patterns, (str, int)) else patterns:
        more = {layer for layer in every if one_of(pattern, every)(layer)}
        if not more:
            names = [layer.name for layer in every]
            raise RecipeError(f"{role}: '{pattern}' matches no layer{nearest(str(pattern), names)}")
        found |= more
    return found


def one_of(pattern: str | int, every: list[Layer]) -> Callable[[Layer], bool]:
    """Whether a layer is one that a pattern means."""
    listed = [x for x in every if is_usual(x) or is_embedding(x.module) or is_recurrent(x)]
    if isinstance(pattern, int):
        return lambda x: x.index == pattern if pattern >= 0 else x in listed[pattern:][:1]
    if pattern in ("first", "last"):
        return lambda x: x is listed[0 if pattern == "first" else -1]
    if pattern.startswith("type:"):
        return lambda x: x in listed and pattern.removeprefix("type:") in class_names(x.module)
    fits = matcher(pattern)
    return lambda x: (x in listed and fits(x.name)) or f"{x.name}.{x.tensor}" == pattern


def is_recurrent(layer: Layer) -> bool:
    """Whether a layer is one of torch's recurrent layers."""
    return isinstance(layer.module, nn.RNNBase)


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in every place where the network holds another."""
    paths = [path for path, m in model.named_modules(remove_duplicate=False) if m is old]
    for path in paths:
        put_module(model, path, new)


def renewed(layers: Iterable[Layer], model: nn.Module) -> list[Layer]:
    """The same layers with the modules that stand in their places now."""
    return [replace(layer, module=model.get_submodule(layer.name)) for layer in layers]
