# SPDX-License-Identifier: Apache-2.0
"""Groups whose sizes depend on each other because the network's code computes one from the other.

``x.transpose(1, 2).reshape(b, n, c)`` joins attention heads to an axis whose size was read from another
tensor: heads and embedding can shrink, but only by the same share.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rarefy.graph.fields import kept_along
from rarefy.graph.labels import FIXED, Labels, components
from rarefy.graph.numbers import Attribute, Extent, Source
from rarefy.graph.sizes import Wired


def families(
    sizes: Sequence[int], owner: Tensor, wired: Sequence[Wired], labels: Labels
) -> list[int]:
    """A number for every group; groups with the same number shrink by the same share.

    Args:
        sizes: units of each group.
        owner: class → group, or -1, shape (count,).
        wired: sizes that the code writes down.
        labels: all labels.
    """
    pairs: list[tuple[int, int]] = []
    holders: dict[Attribute, set[int]] = {}
    for item in wired:
        counted = touching(item.fields, item.axis, owner, labels)
        extents = [s for s in item.size.sources if isinstance(s, Extent)]
        read = {g for e in extents for g in touching(e.fields, e.axis, owner, labels)}
        if extents and any(breaks(item, owner == g, labels) for g in counted | read):
            link(counted | read, pairs)
        for source in item.size.sources:
            if isinstance(source, Attribute) and counted:
                if source in holders and holders[source] != counted:
                    link(counted | holders[source], pairs)
                holders[source] = holders.get(source, set()) | counted
    if not pairs:
        return list(range(len(sizes)))
    a, b = torch.tensor(pairs).t()
    return [int(n) for n in components(len(sizes), a, b)]


def touching(fields: Sequence[Tensor], axis: int, owner: Tensor, labels: Labels) -> set[int]:
    """The groups whose units lie along an axis."""
    found: set[int] = set()
    for each in fields:
        if each.shape[axis] > 1:
            own = each.reshape(-1)
            found |= set(owner[labels.roots[own[own != FIXED]]].unique().tolist())
    return found - {-1}


def breaks(item: Wired, group: Tensor, labels: Labels) -> bool:
    """Whether a size goes wrong if one unit of a group goes alone.

    Args:
        item: the size.
        group: which classes are units of the group, shape (count,).
        labels: all labels.
    """
    first = int(group.nonzero()[0, 0])
    removed = torch.cat([labels.roots == first, torch.zeros(1, dtype=torch.bool)])

    def look(source: Source) -> int:
        if isinstance(source, Extent):
            kept = kept_along(source.fields, source.axis, removed)
            return 0 if kept is None else int(kept.sum())
        return source.value

    kept = kept_along(item.fields, item.axis, removed)
    return kept is not None and item.size.formula(look) != int(kept.sum())


def link(groups: set[int], pairs: list[tuple[int, int]]) -> None:
    """Makes groups one family."""
    first = min(groups, default=0)
    pairs += [(first, other) for other in groups if other != first]


def steps(sizes: Sequence[int]) -> int:
    """In how many equal steps groups of these sizes can shrink together."""
    return math.gcd(*sizes)


def even(counts: Mapping[str, int], members: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The nearest numbers of units to take that keep the families' shares.

    Args:
        counts: group → units that one would like to take.
        members: group → its family and size, of all groups.

    Returns:
        group → units to take; at least one step of a family stays, and it takes the mean of the shares.
    """
    together: dict[int, list[str]] = {}
    for name, (family, _) in members.items():
        together.setdefault(family, []).append(name)
    found = {}
    for names in together.values():
        sizes = [members[name][1] for name in names]
        parts = steps(sizes)
        wanted = sum(counts.get(name, 0) for name in names) / sum(sizes)
        taken = min(round(wanted * parts), parts - 1)
        found.update({name: taken * (members[name][1] // parts) for name in names})
    return {name: n for name, n in found.items() if n}
