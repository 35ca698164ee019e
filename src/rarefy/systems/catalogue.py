# SPDX-License-Identifier: Apache-2.0
"""The published systems that run as recipes, read from the YAML files beside this one."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from rarefy.errors import RecipeError, nearest

SYSTEMS = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A published method as data.

    Attributes:
        id: of the catalogue's row; the name by which a recipe is called.
        title, group, paper, year: what it is and where it was published.
        claim: the paper's headline result, in a sentence.
        text: the YAML of its recipe; empty steps mean that the row is served by a part, named in the claim.
    """

    id: str
    title: str
    group: str
    paper: str
    year: int
    claim: str
    text: str


@cache
def systems() -> dict[str, System]:
    """All published systems, by id; read without importing torch."""
    found = {}
    for path in sorted(SYSTEMS.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        found[data["id"]] = System(
            data["id"],
            data["title"],
            data["group"],
            data["paper"],
            int(data["year"]),
            data["claim"],
            text,
        )
    return found


def find_system(name: str) -> System:
    """A published system by its id.

    Raises:
        RecipeError: there is none, with the nearest id.
    """
    if name not in systems():
        raise RecipeError(
            f"there is no system '{name}'{nearest(name, systems(), 'rarefy systems')}"
        )
    return systems()[name]
