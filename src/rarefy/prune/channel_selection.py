# SPDX-License-Identifier: Apache-2.0
"""Which coupled groups may be cut: those whose layers are meant, as whole families."""

from collections.abc import Mapping, Sequence

from torch import nn

from rarefy.errors import ModelError
from rarefy.graph.coupling import Coupling
from rarefy.graph.groups import Group
from rarefy.prune.channel_sites import path_of
from rarefy.select import select
from rarefy.step import Patterns


def givers(group: Group) -> set[str]:
    """The modules whose outputs are a group's units."""
    return {path_of(m.name) for m in group.members if m.role == "out"}


def matching(model: nn.Module, groups: Sequence[Group], patterns: Patterns) -> set[str]:
    """The names of the groups that hold a layer that one of the patterns selects.

    Raises:
        RecipeError: a pattern that matches no layer.
    """
    layers = {layer.name for layer in select(model, patterns)}
    return {g.name for g in groups if givers(g) & layers}


def chosen_groups(
    model: nn.Module,
    coupling: Coupling,
    layers: Patterns,
    exclude: Patterns,
    spared: Mapping[str, str] | None = None,
) -> tuple[list[Group], dict[str, str]]:
    """The groups that may be cut, and why others of the same families may not.

    Args:
        model: that was coupled.
        coupling: of it.
        layers, exclude: patterns of `rarefy.select.select`; a group is meant if it holds a layer of the
            first and none of the second.
        spared: groups that are to be left alone for other reasons.

    Raises:
        RecipeError: a pattern matches no layer.
        ModelError: nothing is left.
    """
    groups = [g for g in coupling.groups if g.size > 1]
    meant = {g.name for g in groups}
    if layers != "*":
        meant &= matching(model, groups, layers)
    if exclude:
        meant -= matching(model, groups, exclude)
    if not meant:
        raise ModelError(
            f"every channel is protected: of {len(groups)} groups of coupled channels none can be cut with "
            f"layers={layers!r} and exclude={exclude!r}{told(coupling)}"
        )
    return whole_families(coupling, [g for g in groups if g.name in meant - set(spared or ())])


def whole_families(
    coupling: Coupling, groups: Sequence[Group]
) -> tuple[list[Group], dict[str, str]]:
    """The groups none of whose family is missing, and why the others stay."""
    names = {g.name for g in groups}
    holding = {g.family: g.name for g in coupling.groups if g.name not in names}
    return [g for g in groups if g.family not in holding], {
        g.name: f"its size hangs on that of '{holding[g.family]}', which stays"
        for g in groups
        if g.family in holding
    }


def told(coupling: Coupling) -> str:
    """What protects channels beside the recipe, for messages."""
    if not coupling.barriers:
        return "; outputs always are"
    return f"; operators without a rule: {', '.join(sorted(coupling.barriers))}"


def shares_of(
    model: nn.Module, coupling: Coupling, sparsities: Mapping[str, float]
) -> dict[str, float]:
    """Group → the share that the last pattern that matches one of its layers asks for."""
    found: dict[str, float] = {}
    for pattern, share in sparsities.items():
        found |= dict.fromkeys(matching(model, coupling.groups, pattern), share)
    return found


def left(
    coupling: Coupling, groups: Sequence[Group], spared: dict[str, str], more: Mapping[str, str]
) -> list[Group]:
    """The groups that may still be cut when some more must be left alone.

    Args:
        coupling: of the network.
        groups: that could be cut so far.
        spared: group → why it is left alone; `more` and what hangs on it is added.
        more: the same of the groups in question.

    Raises:
        ModelError: none is left.
    """
    spared |= more
    stays, others = whole_families(coupling, [g for g in groups if g.name not in more])
    spared |= others
    if not stays:
        name, why = next(iter(spared.items()), ("", "there is nothing to cut"))
        raise ModelError(f"no channel can be cut: of '{name}' {why}")
    return stays
