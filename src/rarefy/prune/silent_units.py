# SPDX-License-Identifier: Apache-2.0
"""Units of which nothing is heard are cut, and the network answers as before.

A unit is silent if all weights that read it are zero; if all weights that give it, with the norms and biases
beside it, are zero; or if a norm scales it by zero and what is left of its shift comes out as zero behind the
nonlinearity (a negative shift before a ReLU).
"""

import math

import torch
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.decisions import difference
from rarefy.graph.groups import Group
from rarefy.graph.masked import masked_outputs, outputs_with
from rarefy.graph.proof import TOLERANCE, Outcome, cut
from rarefy.graph.units import unit_sums
from rarefy.loops.modes import evaluating
from rarefy.prune.channel_allocation import Cuts
from rarefy.prune.channel_criteria import norm_scales
from rarefy.prune.channel_selection import chosen_groups
from rarefy.prune.channel_sites import Site, observed, visible_sites
from rarefy.step import Patterns
from rarefy.task import Inputs, call


def silent_units(model: nn.Module, group: Group) -> Tensor:
    """Which units of a group nobody reads, or have nothing but zeros, bool (size,)."""
    sizes = {name: p.detach().abs() for name, p in model.named_parameters()}
    reads = any(m.role == "in" and m.name in sizes for m in group.members)
    unread = unit_sums(group, sizes, ("in",)) == 0
    empty = unit_sums(group, sizes, ("out", "along")) == 0
    return (unread & reads) | empty


@torch.no_grad()
def silenced_units(model: nn.Module, groups: list[Group], example: Inputs) -> dict[str, Tensor]:
    """Group → which units a norm scales by zero and give zero wherever they are read, bool (size,).

    Args:
        model: runs twice.
        groups: of its coupling.
        example: a batch on its device.
    """
    scales = norm_scales(model, groups)
    still = {name: s == 0 for name, s in scales.items() if bool((s == 0).any())}
    sites = visible_sites(model, [g for g in groups if g.name in still], example)
    loudest = {site: torch.zeros(site.length) for each in sites.values() for site in each}

    def listen(site: Site, x: Tensor) -> Tensor:
        loud = x.detach().abs().movedim(site.axis, 0).flatten(1).amax(1).cpu()
        loudest[site] = torch.maximum(loudest[site], loud.float())
        return x

    with evaluating(model), observed(model, loudest, listen):
        call(model, example)
    found = {}
    for name, each in sites.items():
        heard = sum((site.by_unit(loudest[site]) for site in each), torch.zeros(1))
        found[name] = still[name] & (heard == 0)
    return found


def cut_silent_units(
    model: nn.Module,
    example: Inputs,
    layers: Patterns = "*",
    exclude: Patterns = (),
) -> Outcome:
    """Cuts all silent units; at least one unit of each group stays.

    Args:
        model: changed in place; its answers stay the same.
        example: a batch on its device.
        layers, exclude: patterns, see `rarefy.prune.channel_selection.chosen_groups`.

    Returns:
        What was cut; groups whose silent units matter after all, because a norm counts them, are spared.

    Raises:
        ModelError: the network can't be followed, or every channel is protected.
    """
    coupling = couple(model, example)
    groups, _ = chosen_groups(model, coupling, layers, exclude)
    silenced = silenced_units(model, groups, example)
    marked = {g.name: silent_units(model, g) for g in groups}
    marked |= {name: marked[name] | more for name, more in silenced.items()}
    cuts = within_families(groups, marked)
    spared: dict[str, str] = {}
    outcome = cut(model, coupling, lossless(model, coupling, cuts, example, spared), example)
    outcome.spared |= spared
    return outcome


def within_families(groups: list[Group], marked: dict[str, Tensor]) -> Cuts:
    """The marked units, as many as let groups of one family shrink by the same share."""
    families: dict[int, list[Group]] = {}
    for group in groups:
        families.setdefault(group.family, []).append(group)
    cuts: Cuts = []
    for family in families.values():
        parts = math.gcd(*(g.size for g in family))
        taken = min(int(marked[g.name].sum()) * parts // g.size for g in family)
        taken = min(taken, parts - 1)
        for g in family:
            units = marked[g.name].nonzero()[:, 0][: taken * (g.size // parts)]
            if len(units):
                cuts.append((g, units))
    return cuts


@torch.no_grad()
def lossless(
    model: nn.Module, coupling: Coupling, cuts: Cuts, example: Inputs, spared: dict[str, str]
) -> Cuts:
    """The cuts without those that change the network's answers, which are told in `spared`."""

    def change(some: Cuts) -> float:
        found = masked_outputs(model, coupling.book, coupling.removed(some), example)
        return max((difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)

    with evaluating(model):
        expected = outputs_with(model, {}, example)
        if not cuts or change(cuts) <= TOLERANCE:
            return cuts
        kept: Cuts = []
        for family in dict.fromkeys(g.family for g, _ in cuts):
            more = [(g, u) for g, u in cuts if g.family == family]
            if change(kept + more) <= TOLERANCE:
                kept += more
            else:
                spared |= {g.name: "its silent units count in a norm" for g, _ in more}
    return kept
