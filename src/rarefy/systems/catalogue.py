# SPDX-License-Identifier: Apache-2.0
"""The published systems that run as recipes, read from the YAML files beside this one."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

from rarefy.errors import RecipeError, nearest
from rarefy.export.runtimes import RUNTIMES

SYSTEMS = Path(__file__).parent
PACKAGES = {"flower": "flwr"} | {extra: name for name, _, extra in RUNTIMES.values() if extra}
"""What the extras of the rows that need one install."""


@dataclass(frozen=True)
class System:
    """A published method as data.

    Attributes:
        id: of the catalogue's row; the name by which a recipe is called.
        title, group, paper, year: what it is and where it was published.
        claim: the paper's headline result, in a sentence.
        text: the YAML of its recipe.
        methods: of its steps, in order; none where a part of the package serves the row.
        part: that part, ``rarefy.report.sensitivity``; else empty.
        extra: that its runtime or server comes with, ``openvino``; else empty.
    """

    id: str
    title: str
    group: str
    paper: str
    year: int
    claim: str
    text: str
    methods: tuple[str, ...]
    part: str = ""
    extra: str = ""

    @property
    def status(self) -> str:
        """``recipe``, ``part``, or ``needs rarefy[openvino]`` while that is not installed."""
        if self.extra and find_spec(PACKAGES[self.extra]) is None:
            return f"needs rarefy[{self.extra}]"
        return "part" if self.part else "recipe"


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
            tuple(step if isinstance(step, str) else next(iter(step)) for step in data["steps"]),
            data.get("part", ""),
            data.get("extra", ""),
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
