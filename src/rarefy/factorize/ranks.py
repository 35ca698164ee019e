# SPDX-License-Identifier: Apache-2.0
"""The rank that a user wrote, as ranks of one layer's decomposition."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rarefy.errors import RecipeError
from rarefy.factorize.decomposition import Decomposition, Ranks, Rule
from rarefy.factorize.sites import Site
from rarefy.factorize.truncate import energy_rank
from rarefy.factorize.vbmf import vbmf_rank
from rarefy.select import select

Wish: TypeAlias = int | float | tuple[int, ...]


def given_ranks(wish: Wish, site: Site, decomposition: Decomposition, asked: str) -> Ranks:
    """A share, a number for all ranks, or one number for each rank; may exceed what the layer has.

    Args:
        wish: as written; a float is a share of the full ranks.
        site: of the layer.
        decomposition: of its weight.
        asked: the decomposition that was asked for, which may not be the one that serves the layer.

    Raises:
        RecipeError: as many numbers as the decomposition has no ranks.
    """
    full = decomposition.full
    if isinstance(wish, float):
        return decomposition.at(wish)
    if isinstance(
        wish, int
    ):  # where there are several ranks, each takes the number as far as it can
        reached = tuple(min(wish, n) for n in full)
        return reached if len(full) > 1 and wish <= max(full) else (wish,) * len(full)
    if len(wish) == len(full):
        return wish
    if site.name != asked:
        return (min(wish),) * len(full)
    raise RecipeError(
        f"factorize: rank={list(wish)} has {len(wish)} numbers, but {asked} of '{site.layer.name}' has "
        f"{len(full)} ranks, at most {list(full)}"
    )


def in_range(ranks: Ranks, decomposition: Decomposition) -> bool:
    """Whether no rank exceeds the full one."""
    return all(rank <= n for rank, n in zip(ranks, decomposition.full, strict=True))


def out_of_range(wish: Wish, largest: Mapping[str, Ranks]) -> RecipeError:
    """The complaint about a rank that no layer has."""
    name = max(largest, key=lambda path: max(largest[path]))
    full = largest[name]
    most = str(full[0]) if len(full) == 1 else str(list(full))
    told = list(wish) if isinstance(wish, tuple) else wish
    return RecipeError(
        f"factorize: rank={told} is out of range: the full rank of "
        f"'{name}' is {most}; give 1 to {max(full)}, or a share such as 0.25"
    )


def by_layer(
    sites: Sequence[Site], model: object, ranks: Mapping[str, Wish] | None, wish: Wish
) -> dict[Site, tuple[Wish, bool]]:
    """For every site what was written for it, and whether it was written for some layers only."""
    found: dict[Site, tuple[Wish, bool]] = {}
    if ranks is None:
        return dict.fromkeys(sites, (wish, False))
    for pattern, each in ranks.items():
        matching = {id(layer.module) for layer in select(model, pattern)}  # type: ignore[arg-type]
        found |= {s: (each, True) for s in sites if id(s.layer.module) in matching}
    return found


def rule_of(name: str, energy: float) -> Rule:
    """How a rank is read off a spectrum: ``"energy"`` or ``"vbmf"``, the latter for the largest group."""
    if name == "energy":
        return lambda s: energy_rank(s.squares, energy)
    return lambda s: max(vbmf_rank(squares, s.shape) for squares in s.squares)
