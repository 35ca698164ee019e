# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that holds its style, script, charts and data, and asks no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rarefy.errors import FileError
from rarefy.report import verdict
from rarefy.report.assurance import budget_section, parity_section
from rarefy.report.confusion import classes_section
from rarefy.report.costs import before_after_table, latency_conditions, stages_table
from rarefy.report.frame import frame, write_page
from rarefy.report.headline import headline
from rarefy.report.kernels import kernels_section
from rarefy.report.layers import layers_section
from rarefy.report.markup import Markup, element, group
from rarefy.report.origin import environment_section, recipe_section
from rarefy.report.schema import Measurements, read
from rarefy.report.steps import steps_chart
from rarefy.report.table import section
from rarefy.report.training import metric_of, sensitivity_section, training_section

NAVIGATION = {
    "summary": "Before and after",
    "steps": "Steps",
    "budget": "Budget",
    "layers": "Layers",
    "kernels": "Kernels",
    "classes": "Classes",
    "parity": "Parity",
    "training": "Training",
    "sensitivity": "Sensitivity",
    "environment": "Machine",
    "recipe": "Recipe",
}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a folder of results.

    Args:
        directory: holds ``measurements.json`` and ``recipe.yaml``.

    Returns:
        The page's path. It is written beside its name first and then moved, never half-written.

    Raises:
        FileError: one of the two files is missing, is no text, or does not hold what it should.
    """
    source = directory / "measurements.json"
    try:
        measurements = json.loads(_text(source))
    except json.JSONDecodeError as error:
        raise FileError(
            f"{source} is not JSON (line {error.lineno}: {error.msg}); "
            "write it anew with rarefy compress."
        ) from error
    if not isinstance(measurements, dict):
        raise FileError(
            f"{source} holds a {type(measurements).__name__} where an object with the key "
            "'stages' belongs; write it anew with rarefy compress."
        )
    page = _render(read(measurements, str(source)), _text(directory / "recipe.yaml"))
    return write_page(page, directory / "report.html")


def render(measurements: Mapping[str, Any], recipe: str) -> str:
    """The page as text.

    Args:
        measurements: the document ``measurements.json`` (design: stages, layers, classes, ...).
        recipe: the YAML of the steps, shown as it is.

    Raises:
        FileError: a key is missing or holds something else than a report can show.
    """
    return _render(read(measurements, "measurements.json"), recipe)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(
            f"{path} can't be read ({error.strerror}); a report needs measurements.json and "
            "recipe.yaml in one folder, as rarefy compress leaves them."
        ) from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text; write it anew with rarefy compress.") from error


def _render(measurements: Measurements, recipe: str) -> str:
    sections = _sections(measurements, recipe)
    title = f"{measurements.model}: {', '.join(verdict.clauses(measurements)) or 'measured'}"
    return frame(
        title,
        headline(measurements),
        sections,
        NAVIGATION,
        version=measurements.rarefy,
        notes=_notes(measurements.notes),
    )


def _sections(measurements: Measurements, recipe: str) -> dict[str, Markup]:
    """The parts that there is data for, in the page's order."""
    found = {"summary": _summary(measurements), "steps": _steps(measurements)}
    if measurements.budget is not None:
        found["budget"] = budget_section(measurements.budget)
    if measurements.layers:
        found["layers"] = layers_section(measurements.layers)
    if measurements.kernels:
        found["kernels"] = kernels_section(measurements)
    if measurements.classes is not None:
        found["classes"] = classes_section(measurements.classes)
    found["parity"] = parity_section(measurements.parity)
    if any(measurements.training.values()):
        found["training"] = training_section(measurements)
    if measurements.sensitivity:
        metric = metric_of(measurements)
        found["sensitivity"] = sensitivity_section(measurements.sensitivity, metric)
    found["environment"] = environment_section(measurements)
    found["recipe"] = recipe_section(measurements, recipe)
    return found


def _summary(measurements: Measurements) -> Markup:
    latency = measurements.after.latency_ms
    lead = "× is a factor, pt a percentage point; 1 kB is 1000 bytes."
    if latency is None:
        lead += " Latency was not measured."
    else:
        lead += f" Latency of one call: {latency_conditions(latency)}."
    return section("summary", "Before and after", lead, before_after_table(measurements))


def _steps(measurements: Measurements) -> Markup:
    lead = "What each step did to the file and to the metric, from the top down."
    every = element(
        "details", element("summary", "All figures of every stage"), stages_table(measurements)
    )
    return section("steps", "Step by step", lead, steps_chart(measurements), every)


def _notes(notes: list[str]) -> Markup:
    if not notes:
        return group()
    items = [element("li", note) for note in notes]
    return element("aside", element("h2", "Worth knowing"), element("ul", *items), class_="notes")
