# SPDX-License-Identifier: Apache-2.0
"""The catalogue itself: what a row says of its own state."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

from rarefy.systems import catalogue
from rarefy.systems.catalogue import PACKAGES, find_system, systems


def test_status_says_what_a_row_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_system("sensitivity").status == "part"
    assert find_system("mag-prune").status == "recipe"
    found = importlib.util.find_spec
    missing = PACKAGES["litert"]
    monkeypatch.setattr(catalogue, "find_spec", lambda n: None if n == missing else found("json"))
    states = {name: system.status for name, system in systems().items()}
    assert [n for n, state in states.items() if state == "needs rarefy[litert]"] == ["tflite"]
    assert set(states.values()) == {"recipe", "part", "needs rarefy[litert]"}


def test_extras_are_the_projects_own() -> None:
    home = Path(__file__).parents[2]
    project = tomllib.loads((home / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {system.extra for system in systems().values()} - {""}
    assert wanted == PACKAGES.keys() <= project["optional-dependencies"].keys()
