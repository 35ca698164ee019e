# SPDX-License-Identifier: Apache-2.0
"""Which units of which coupled group go, from their scores and a share.

Counts are kept within three limits: a largest share of every group, multiples that a runtime likes, and
shares that are equal where the network's code computes one size from another.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling
from rarefy.graph.groups import Group
from rarefy.graph.units import unit_counts, unit_sums
from rarefy.loops.modes import evaluating
from rarefy.prune.allocation import global_, keep_largest, lamp_scores
from rarefy.prune.channel_scores import normalise
from rarefy.prune.channel_sites import channel_axis, path_of
from rarefy.task import Inputs, call

Counts = dict[str, int]
Cuts = list[tuple[Group, Tensor]]


@dataclass(frozen=True)
class Limits:
    """What counts must keep to.

    Attributes:
        sizes: group → units that it had at first.
        largest: share of them that may go.
        round_to: what stays is a multiple of so many channels, where the group has that many.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    largest: float = 0.9
    round_to: int = 1

    def first(self, group: Group) -> int:
        """How many units a group had at first."""
        return self.sizes.get(group.name, group.size)

    def gone(self, group: Group) -> int:
        """How many are gone already."""
        return self.first(group) - group.size

    def most(self, group: Group) -> int:
        """How many more may go; at least one unit stays."""
        allowed = math.floor(self.largest * self.first(group) + 1e-9) - self.gone(group)
        return max(0, min(allowed, group.size - 1))


def ranked(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    allocation: str,
    how: str,
    savings: Mapping[str, float],
) -> dict[str, Tensor]:
    """Scores as they are compared over all groups.

    Args:
        groups: to choose from.
        scores: group → importance of its units.
        allocation: ``"lamp"`` for scores as `rarefy.prune.allocation.lamp_scores` makes them.
        how: see `rarefy.prune.channel_scores.normalise`.
        savings: group → what taking one of its units saves; missing ones count 1.
    """
    found = {}
    for group in groups:
        each = normalise(scores[group.name].double(), how)
        each = lamp_scores(each) if allocation == "lamp" else each
        found[group.name] = each / max(savings.get(group.name, 1.0), 1e-12)
    return found


def local_counts(
    groups: Sequence[Group], shares: Mapping[str, float], limits: Limits
) -> dict[str, int]:
    """Units to take so that round(share · first size) of each group are gone, within the limits."""
    return {
        g.name: max(
            0, min(round(shares[g.name] * limits.first(g)) - limits.gone(g), limits.most(g))
        )
        for g in groups
    }


def global_counts(
    groups: Sequence[Group], scores: Mapping[str, Tensor], number: int, limits: Limits
) -> dict[str, int]:
    """How many units of each group are among the `number` least important of all that may go."""
    bounded = []
    for group in groups:
        own = scores[group.name]
        safe = keep_largest(own, group.size - limits.most(group))
        bounded.append(own.masked_fill(safe, math.inf))
    total = sum(g.size for g in groups)
    number = min(number, sum(limits.most(g) for g in groups))
    masks = global_(bounded, number / max(total, 1))
    return {g.name: int((~m).sum()) for g, m in zip(groups, masks, strict=True)}


def width(group: Group) -> int:
    """How many channels a unit has in the layers that give it."""
    outs = [m for m in group.members if m.role == "out"]
    return max((len(m.places) // group.size for m in outs), default=1)


def is_round(group: Group, taken: int, limits: Limits) -> bool:
    """Whether what stays is a multiple of the wanted number, or everything."""
    return taken == 0 or (group.size - taken) * width(group) % limits.round_to == 0


def legal_counts(
    coupling: Coupling, groups: Sequence[Group], counts: Mapping[str, int], limits: Limits
) -> dict[str, int]:
    """The nearest counts that the network's code and the wanted multiples allow.

    Args:
        coupling: of the network.
        groups: that may be cut; whole families.
        counts: group → units that one would like to take.
        limits: that they keep to.
    """
    evened = coupling.even(dict(counts))
    families: dict[int, list[Group]] = {}
    for group in groups:
        families.setdefault(group.family, []).append(group)
    found: Counts = {}
    for family in families.values():
        parts = math.gcd(*(g.size for g in family))
        wanted = evened.get(family[0].name, 0) * parts // family[0].size

        def allowed(taken: int, family: list[Group] = family, parts: int = parts) -> bool:
            each = [(g, taken * (g.size // parts)) for g in family]
            return all(is_round(g, n, limits) and n <= limits.most(g) for g, n in each)

        # of two that are equally near the smaller cut is taken
        near = sorted(range(parts), key=lambda t: (abs(t - wanted), t))
        taken = next(t for t in near if allowed(t))
        found |= {g.name: taken * (g.size // parts) for g in family if taken}
    return found


def lowest_units(
    groups: Sequence[Group], scores: Mapping[str, Tensor], counts: Mapping[str, int]
) -> Cuts:
    """The least important units of each group; among equals those with the higher number go."""
    cuts = []
    for group in groups:
        if counts.get(group.name):
            stays = keep_largest(scores[group.name], group.size - counts[group.name])
            cuts.append((group, (~stays).nonzero()[:, 0]))
    return cuts


def savings(
    model: nn.Module, groups: Sequence[Group], per: str, example: Inputs
) -> dict[str, float]:
    """Group → parameters or multiply-accumulates of one example that taking one of its units saves.

    Args:
        model: run once in eval mode for multiply-accumulates.
        groups: of its coupling.
        per: ``"parameters"``, ``"macs"``, or ``"unit"`` for nothing.
        example: a batch of one on the model's device.
    """
    if per == "unit":
        return {}
    if per == "parameters":
        roles = ("in", "out", "along")
        return {g.name: float(unit_counts(g, model, roles).mean()) for g in groups}
    rates = macs_per_weight(model, example)
    held = dict(model.named_parameters())
    values = {n: torch.full_like(held[n], rates[path_of(n)]) for n in held if path_of(n) in rates}
    matrices = {n: v for n, v in values.items() if v.dim() > 1}
    return {g.name: float(unit_sums(g, matrices, ("in", "out")).mean()) for g in groups}


@torch.no_grad()
def macs_per_weight(model: nn.Module, example: Inputs) -> dict[str, float]:
    """Convolution or linear layer → how many positions each of its weights is multiplied at."""
    rates: dict[str, float] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen = args[0] if getattr(module, "transposed", False) else output
        rates[name] = rates.get(name, 0.0) + seen.numel() / seen.shape[channel_axis(module)]

    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: note(name, m, a, out))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    try:
        with evaluating(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return rates
