# SPDX-License-Identifier: Apache-2.0
"""Where the figures come from: machine, recipe, and the command that makes them again."""

import json
import shlex

from rarefy.report import quantities as q
from rarefy.report.markup import Markup, definitions, element
from rarefy.report.schema import Measurements
from rarefy.report.table import section


def environment_section(measurements: Measurements) -> Markup:
    """On what the figures were measured, as recorded."""
    facts = [("rarefy", measurements.rarefy), ("seed", q.MISSING)]
    if measurements.seed is not None:
        facts[1] = ("seed", str(measurements.seed))
    facts += [(name, _written(value)) for name, value in measurements.environment.items()]
    text = "Latency and memory hold for this machine only; sizes and the metric hold anywhere."
    return section("environment", "Measured on", text, definitions(facts))


def _written(value: object) -> str:
    if isinstance(value, str):
        return value
    return q.MISSING if value is None else json.dumps(value, ensure_ascii=False)


def command(measurements: Measurements) -> str:
    """The shell command that repeats the run from the recipe beside this page."""
    words = ["rarefy", "compress", measurements.model, measurements.task]
    if measurements.weights is not None:
        words += ["--weights", measurements.weights]
    words += ["--recipe", "recipe.yaml"]
    if measurements.seed is not None:
        words += ["--seed", str(measurements.seed)]
    return shlex.join([*words, "--out", "again"])


def recipe_section(measurements: Measurements, recipe: str) -> Markup:
    """The recipe as run and the command to run it, each with a button that copies it."""
    lead = "Run this in the folder that holds recipe.yaml."
    return section(
        "recipe",
        "Do it again",
        lead,
        copyable("Command", command(measurements)),
        copyable("recipe.yaml", recipe.rstrip("\n")),
    )


def copyable(name: str, text: str) -> Markup:
    """Text to be used elsewhere, with a button that copies it."""
    button = element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {name}")
    head = element("div", element("span", name), button, class_="code-head")
    code = element("pre", element("code", text), tabindex=0, aria_label=name)
    return element("div", head, code, class_="code")
