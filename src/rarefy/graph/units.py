# SPDX-License-Identifier: Apache-2.0
"""Numbers per unit of a group, from numbers per weight."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from rarefy.graph.groups import Group, Member

ROLES = ("out", "along")
"""The axes that give channels, and those that stand beside them."""


def members(group: Group, roles: Collection[str] = ROLES) -> list[Member]:
    """The axes of a group that are used in one of some roles."""
    return [m for m in group.members if m.role in roles]


def unit_sums(
    group: Group, values: Mapping[str, Tensor], roles: Collection[str] = ("out",)
) -> Tensor:
    """Adds up what every unit's weights have, over all layers that are coupled.

    Args:
        group: of a coupling.
        values: parameter → a number for each of its entries, shaped like it; parameters that are missing
            count as nothing.
        roles: which axes count: ``"out"`` (rows that give the channel), ``"in"`` (columns that read it),
            ``"along"`` (norms, biases).

    Returns:
        float64, shape (group.size,).

    Examples:
        The squared L2 norm of all filters that give each channel:

            unit_sums(group, {name: p.detach() ** 2 for name, p in model.named_parameters()})
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in members(group, roles):
        if member.name in values:
            each = along_axis(values[member.name], member.axis)
            total.index_add_(0, member.units, each[member.places])
    return total


def unit_counts(group: Group, model: nn.Module, roles: Collection[str] = ("out",)) -> Tensor:
    """How many weights every unit has, float64, shape (group.size,)."""
    tensors = dict(model.named_parameters())
    return unit_sums(group, {n: torch.ones_like(p, dtype=torch.float64) for n, p in tensors.items()
                             if any(m.name == n for m in group.members)}, roles)  # fmt: skip


def along_axis(values: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one, float64 on the CPU, shape (n_axis,)."""
    return (
        values.detach().movedim(axis, 0).flatten(1).double().sum(1).cpu()
        if values.dim() > 1
        else values.detach().double().cpu()
    )


def scatter_units(
    group: Group, member: Member, values: Tensor, n: int, fill: float = 0.0
) -> Tensor:
    """The reverse: a number per unit as a number per position of one axis, shape (n,)."""
    spread = torch.full((n,), fill, dtype=values.dtype)
    spread[member.places] = values[member.units]
    return spread
