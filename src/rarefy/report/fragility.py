# SPDX-License-Identifier: Apache-2.0
"""The page of a sensitivity analysis: curves, tables, and the recipes that follow from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rarefy.report import quantities as q
from rarefy.report.frame import frame
from rarefy.report.markup import Markup, element
from rarefy.report.origin import copyable
from rarefy.report.schema import Metric, Probe
from rarefy.report.table import Cell, section, table
from rarefy.report.training import fragility_chart, sensitivity_section
from rarefy.report.verdict import metric_text

TOLERANCE = 0.01  # of the metric, that a layer may cost alone
HEADINGS = {
    "sensitivity": "Curves",
    "layers": "Layers",
    "recipe": "Recipe",
    "groups": "Channels",
    "channels": "Channel recipe",
}
LARGEST = 0.9  # share of a group's channels that a recipe takes at most


def render(document: Mapping[str, Any]) -> str:
    """The page for a document of `rarefy.report.sensitivity.write_sensitivity`, as text."""
    metric = Metric.model_validate(document["metric"])
    probes = [Probe.model_validate(row) for row in document["rows"]]
    bearable = {
        name: bearable_sparsity([p for p in probes if p.layer == name], metric)
        for name in dict.fromkeys(p.layer for p in probes)
    }
    sections = {
        "sensitivity": sensitivity_section(probes, metric),
        "layers": layers_section(document["rows"], metric, bearable),
        "recipe": recipe_section(bearable),
    }
    if document.get("groups"):
        sections |= group_sections(document["groups"], metric)
    return frame(
        f"{document['model']}: what each layer can lose",
        headline(document, metric, bearable),
        sections,
        HEADINGS,
        version=document["rarefy"],
    )


def loss(metric: Metric, value: float | None) -> float:
    """How much worse a value is than the baseline's, as a share of it; infinite if it is no number."""
    if not q.finite(value) or not q.finite(metric.value):
        return float("inf")
    lost = metric.value - value if metric.higher_is_better else value - metric.value
    return lost / max(abs(metric.value), 1e-12)


def bearable_sparsity(
    probes: Sequence[Probe], metric: Metric, tolerance: float = TOLERANCE
) -> float:
    """The largest sparsity up to which no probe of a layer loses more than the tolerance; 0 if none."""
    found = 0.0
    for probe in sorted(probes, key=lambda p: p.sparsity):
        if loss(metric, probe.metric) > tolerance:
            break
        found = probe.sparsity
    return found


def headline(document: Mapping[str, Any], metric: Metric, bearable: Mapping[str, float]) -> Markup:
    """What was analysed, and the layers that bear most and least."""
    most, least = max(bearable, key=bearable.__getitem__), min(bearable, key=bearable.__getitem__)
    words = [f"{q.shortened(most, 40)} bears {q.percent(bearable[most], 0)} zeros"]
    if bearable[least] < bearable[most]:
        words.append(f"{q.shortened(least, 40)} only {q.percent(bearable[least], 0)}")
    origin = element(
        "p",
        element("span", document["model"], class_="name"),
        " on ",
        element("span", document["task"], class_="name"),
        f", {metric.name} {metric_text(metric)} before",
        class_="kicker",
    )
    title = element("h1", ", ".join(words) + ".")
    return element(
        "header", element("div", element("div", origin, title, class_="words"), class_="hero")
    )


def layers_section(
    rows: Sequence[Mapping[str, Any]], metric: Metric, bearable: Mapping[str, float]
) -> Markup:
    """All figures: one row a layer, one column a sparsity."""
    lead = (
        f"{metric.name.capitalize()} on validation data with one layer pruned by magnitude and nothing "
        f"repaired; a layer bears what costs less than {q.percent(TOLERANCE, 0)} of it."
    )
    figures = figures_table("Metric by layer and share of zeros", rows, metric, bearable, "Layer")
    return section("layers", "Layer by layer", lead, figures)


def figures_table(
    caption: str,
    rows: Sequence[Mapping[str, Any]],
    metric: Metric,
    bearable: Mapping[str, float],
    what: str,
) -> Markup:
    """A table of probes: one row for each of what was probed, one column a sparsity."""
    sparsities = sorted({row["sparsity"] for row in rows})
    by_layer: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], {})[row["sparsity"]] = row
    headings = [what, "Type", "Weights", *(q.percent(s, 0) for s in sparsities), "Bears"]
    cells = []
    for name, found in by_layer.items():
        first = next(iter(found.values()))
        values = [found[s]["metric"] if s in found else None for s in sparsities]
        cells.append(
            [
                name,
                first["type"],
                Cell(q.amount(first["parameters"]), key=first["parameters"]),
                *(value_cell(metric, value) for value in values),
                Cell(q.percent(bearable[name], 0), key=bearable[name]),
            ]
        )
    return table(caption, headings, cells, sortable=True, words=2)


def group_sections(rows: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Markup]:
    """Curves and figures of coupled channels, and a recipe that cuts them."""
    probes = [Probe.model_validate(row) for row in rows]
    bearable = {
        name: bearable_sparsity([p for p in probes if p.layer == name], metric)
        for name in dict.fromkeys(p.layer for p in probes)
    }
    drawing, names = fragility_chart(
        "groups", probes, metric, "channels cut in this group alone (%)"
    )
    figures = figures_table(
        "Metric by group and share of its channels", rows, metric, bearable, "Group"
    )
    lead = (
        "The same with the smallest channels of one group cut out, and everything that is coupled to them. "
        f"The most fragile is {q.shortened(names[0], 60)}."
    )
    found = {
        "groups": section("groups", "What each group of channels can lose", lead, drawing, figures)
    }
    patterns = {row["layer"]: row["pattern"] for row in rows}
    wanted = {
        patterns[name]: min(share, LARGEST)
        for name, share in bearable.items()
        if share > 0 and patterns[name]
    }
    if wanted:
        steps = [{"prune-channels": {"sparsities": wanted}}, "distill"]
        text = yaml.safe_dump({"steps": steps}, sort_keys=False, width=100)
        lead = "Every group as far as it bears alone; the file becomes smaller and faster as it is."
        body = copyable("channels.yaml", text.rstrip())
        found["channels"] = section("channels", "A recipe for channels", lead, body)
    return found


def value_cell(metric: Metric, value: float | None) -> Cell:
    """A metric, coloured where it is worse than the tolerance allows."""
    shown = metric_text(metric.model_copy(update={"value": value}))
    worse = loss(metric, value) > TOLERANCE
    return Cell(shown, key=value, tone="worse" if worse else None)


def recipe_section(bearable: Mapping[str, float]) -> Markup:
    """A recipe that prunes every layer as far as it bears alone, then repairs."""
    wanted = {name: sparsity for name, sparsity in bearable.items() if sparsity > 0}
    steps = [{"prune-weights": {"sparsities": wanted}}, "distill"] if wanted else ["finetune"]
    text = yaml.safe_dump({"steps": steps}, sort_keys=False, width=100)
    lead = "Layers pruned together lose more than each alone, and training brings much of it back."
    return section("recipe", "A recipe to start from", lead, copyable("recipe.yaml", text.rstrip()))
