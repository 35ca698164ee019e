# SPDX-License-Identifier: Apache-2.0
"""Takes units out of a network: parameters shrink, and attributes that hold sizes are mended."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.graph.coupling import Coupling
from rarefy.graph.fields import kept_along
from rarefy.graph.groups import Group
from rarefy.graph.numbers import Attribute, Extent, Lookup, Source
from rarefy.graph.sizes import Wired
from rarefy.graph.slicing import sliced

SIZES: tuple[tuple[tuple[type[nn.Module], ...], dict[str, tuple[str, int]]], ...] = (
    ((nn.Linear,), {"in_features": ("weight", 1), "out_features": ("weight", 0)}),
    ((nn.Embedding, nn.EmbeddingBag), {"embedding_dim": ("weight", 1)}),
    ((nn.modules.batchnorm._NormBase,), {"num_features": ("running_mean", 0)}),
    ((nn.modules.batchnorm._NormBase,), {"num_features": ("weight", 0)}),
    ((nn.GroupNorm,), {"num_channels": ("weight", 0)}),
    ((nn.PReLU,), {"num_parameters": ("weight", 0)}),
    ((nn.RNNBase,), {"input_size": ("weight_ih_l0", 1)}),
    ((nn.RNNCellBase,), {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
)  # fmt: skip
"""Attributes of torch's modules that only tell the shape of a parameter."""


@dataclass
class Undo:
    """What a cut replaced, so that it can be taken back."""

    tensors: list[tuple[dict[str, Any], str, Tensor]] = field(default_factory=list)
    attributes: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)

    def back(self) -> None:
        """Puts everything back."""
        for held, name, tensor in self.tensors:
            held[name] = tensor
        for state, name, value in reversed(self.attributes):
            state[name] = value


def unsatisfied(coupling: Coupling, removed: Tensor) -> tuple[dict[Attribute, int], list[Wired]]:
    """New values of attributes after a cut, and the sizes that none can make right."""
    values: dict[Attribute, int] = {}
    settled: set[Attribute] = set()

    def look(source: Source) -> int:
        if isinstance(source, Attribute):
            return values.get(source, source.value)
        kept = kept_along(source.fields, source.axis, removed)
        assert kept is not None
        return int(kept.sum())

    wanted = [(w, count(w, removed)) for w in coupling.wired]
    ordered = sorted(wanted, key=lambda pair: len(attributes_of(pair[0])))
    for _ in range(3):
        for wired, size in ordered:
            sources = attributes_of(wired)
            open_ones = [a for a in sources if a not in settled]
            if wired.size.formula(look) == size:
                if len(sources) == 1:
                    settled.update(sources)
                continue
            if len(open_ones) == 1:
                solve(wired, size, open_ones[0], values, look)
                settled.add(open_ones[0])
    return values, [w for w, size in wanted if w.size.formula(look) != size]


def attributes_of(wired: Wired) -> list[Attribute]:
    """The attributes that a size is made of."""
    return sorted(
        (s for s in wired.size.sources if isinstance(s, Attribute)),
        key=lambda a: (a.holder, a.name, a.index or 0),
    )


def count(wired: Wired, removed: Tensor) -> int:
    """What a size must be after a cut."""
    kept = kept_along(wired.fields, wired.axis, removed)
    return int(wired.size) if kept is None else int(kept.sum())


def solve(
    wired: Wired, size: int, unknown: Attribute, values: dict[Attribute, int], look: Lookup
) -> None:
    """Finds the value of one attribute that makes a size right; without one nothing is changed."""
    before = look(unknown)
    guess = round(before * size / max(int(wired.size), 1))
    for value in dict.fromkeys([guess, *range(1, 2 * before + 1)]):
        values[unknown] = value
        try:
            if wired.size.formula(look) == size:
                return
        except ZeroDivisionError:
            continue
    values[unknown] = before


def write(places: dict[int, Any], attribute: Attribute, value: int, undo: Undo) -> None:
    """Changes an attribute."""
    state = vars(places[attribute.holder])
    undo.attributes.append((state, attribute.name, state[attribute.name]))
    if attribute.index is None:
        state[attribute.name] = value
    else:
        items = list(state[attribute.name])
        items[attribute.index] = value
        state[attribute.name] = type(state[attribute.name])(items)


def apply(
    model: nn.Module, coupling: Coupling, removed: Tensor, values: dict[Attribute, int]
) -> Undo:
    """Slices every parameter and buffer that a cut touches, wherever it is held, and mends attributes.

    Args:
        model: that was coupled; changed in place.
        removed: which labels go, shape (count + 1,).
        values: new values of attributes.
    """
    undo = Undo()
    places = own_objects(model, coupling.places, values, undo)
    for attribute, value in values.items():
        write(places, attribute, value, undo)
    owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    owners.setdefault(id(tensor), []).append((held, name))
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    for name, kept in coupling.book.kept(removed).items():
        old = tensors[name]
        new = sliced(old.detach(), kept)
        made = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        for held, key in owners[id(old)]:
            undo.tensors.append((held, key, old))
            held[key] = made  # type: ignore[assignment]
    for module in model.modules():
        tell_sizes(module, undo)
    return undo


def own_objects(
    model: nn.Module, places: dict[int, Any], values: dict[Attribute, int], undo: Undo
) -> dict[int, Any]:
    """Gives the model copies of the objects that will be changed: others may hold a configuration too."""
    found = dict(places)
    for number in {attribute.holder for attribute in values}:
        shared = places[number]
        if isinstance(shared, nn.Module):
            continue
        found[number] = copy.copy(shared)
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if value is shared:
                    undo.attributes.append((vars(module), name, value))
                    vars(module)[name] = found[number]
    return found


def tell_sizes(module: nn.Module, undo: Undo) -> None:
    """Brings the attributes of torch's own modules that only tell a shape up to date."""
    told: dict[str, int] = {}
    for kinds, names in SIZES:
        if isinstance(module, kinds):
            for name, (tensor, axis) in names.items():
                if (held := getattr(module, tensor, None)) is not None and held.dim() > axis:
                    told[name] = held.shape[axis]
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        sizes = (
            (second * module.groups, first)
            if module.transposed
            else (first, second * module.groups)
        )
        told |= dict(zip(("out_channels", "in_channels"), sizes, strict=True))
    for name, value in told.items():
        if name in vars(module) and vars(module)[name] != value:
            undo.attributes.append((vars(module), name, vars(module)[name]))
            vars(module)[name] = value


def plan(
    coupling: Coupling, cuts: Iterable[tuple[Group, Tensor]]
) -> tuple[list[tuple[Group, Tensor]], Tensor, dict[Attribute, int], list[Group]]:
    """What a cut comes to: without groups on which a size in the code depends that can't be mended.

    Args:
        coupling: of the network.
        cuts: groups with the numbers of the units to take.

    Returns:
        The cuts that are left, the labels that go, new values of attributes, and the groups left alone.

    Raises:
        ModelError: a cut would take all units of a group.
    """
    chosen = [(group, units) for group, units in cuts if len(units)]
    for group, units in chosen:
        if len(units.unique()) >= group.size:
            raise ModelError(
                f"all {group.size} units of '{group.name}' would go; keep at least one of them"
            )
    spared: list[Group] = []
    while True:
        removed = coupling.removed(chosen)
        values, wrong = unsatisfied(coupling, removed)
        if not wrong:
            return chosen, removed, values, spared
        bad = involved(coupling, chosen, wrong)
        spared += bad
        chosen = [(g, u) for g, u in chosen if g not in bad]


def involved(
    coupling: Coupling, chosen: list[tuple[Group, Tensor]], wrong: list[Wired]
) -> list[Group]:
    """The groups whose cut makes a size wrong: it counts them, or another that shares an attribute does."""
    attributes = {a for wired in wrong for a in attributes_of(wired)}
    sharing = [w for w in coupling.wired if attributes & set(attributes_of(w))]
    roots = coupling.book.labels.roots
    touched = torch.zeros(len(roots) + 1, dtype=torch.bool)
    for wired in (*wrong, *sharing):
        extents = [(s.fields, s.axis) for s in wired.size.sources if isinstance(s, Extent)]
        for fields, axis in ((wired.fields, wired.axis), *extents):
            for labels in fields:
                if labels.shape[axis] > 1:
                    touched[labels.reshape(-1)] = True
    classes = roots[touched[:-1]].unique()
    known = {g.family for g, _ in chosen if bool(torch.isin(g.classes, classes).any())}
    return [g for g, _ in chosen if g.family in known or not known]
