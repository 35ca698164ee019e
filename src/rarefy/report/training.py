# SPDX-License-Identifier: Apache-2.0
"""How training went, and how much each layer can lose: curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rarefy.report import chart as c
from rarefy.report import quantities as q
from rarefy.report.markup import Markup
from rarefy.report.schema import Epoch, Measurements, Metric, Probe
from rarefy.report.table import section

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OTHERS = "var(--zeros)"  # lines that are shown but not named


def metric_of(measurements: Measurements) -> Metric | None:
    """The metric by which the network was judged, or None if there is none."""
    return measurements.before.metric or measurements.after.metric


def _as_shown(value: float | None, metric: Metric | None) -> float | None:
    """In percent where the metric is a fraction; gaps where it is no number."""
    if not q.finite(value):
        return None
    return 100 * value if metric is not None and metric.is_fraction else value


def _metric_title(metric: Metric | None) -> str:
    if metric is None:
        return "metric"
    return f"{q.shortened(metric.name, 24)}{' (%)' if metric.is_fraction else ''}"


def training_section(measurements: Measurements) -> Markup:
    """Loss and metric by epoch; stages one after the other, each in its colour."""
    training = {name: epochs for name, epochs in measurements.training.items() if epochs}
    total = sum(map(len, training.values()))
    metric = metric_of(measurements)
    panels = ["loss"] if any(x.loss is not None for e in training.values() for x in e) else []
    if any(x.metric is not None for e in training.values() for x in e):
        panels.append("metric")

    def build(narrow: bool) -> "Figure":
        return _curves(training, panels, metric, narrow)

    ends = "; ".join(
        f"{name}: loss {q.plain(epochs[0].loss)} to {q.plain(epochs[-1].loss)}"
        for name, epochs in training.items()
    )
    lead = f"{total} epochs in {len(training)} stage{'' if len(training) == 1 else 's'}."
    legend = [(q.shortened(name, 60), _colour(i)) for i, name in enumerate(training)]
    drawing = c.chart("chart-training", f"Training curves. {ends}.", build, legend)
    return section("training", "Training", lead, drawing)


def _colour(place: int) -> str:
    return c.SERIES[place % len(c.SERIES)]


def _curves(
    training: Mapping[str, list[Epoch]], panels: list[str], metric: Metric | None, narrow: bool
) -> "Figure":
    from plotly import graph_objects as go

    titles = {"loss": "loss", "metric": c.label(_metric_title(metric))}
    gap = 0.12
    share = (1 - gap * (len(panels) - 1)) / max(len(panels), 1)
    total = sum(map(len, training.values()))
    most = 6 if narrow else 16
    ticks: dict[str, Any] = {"dtick": 1} if total <= most else {"nticks": most}
    epochs_axis = c.axis("epoch", showgrid=False, range=[0.5, total + 0.5], **ticks)
    layout: dict[str, Any] = {"xaxis": epochs_axis}
    traces: list[Any] = []
    for k, panel in enumerate(panels):
        top = 1 - k * (share + gap)
        name = f"y{k + 1}" if k else "y"
        layout[f"yaxis{k + 1 if k else ''}"] = c.axis(
            titles[panel], domain=[max(0.0, top - share), top], nticks=5
        )
        done = 0
        for i, (stage, epochs) in enumerate(training.items()):
            values = [x.loss if panel == "loss" else _as_shown(x.metric, metric) for x in epochs]
            traces.append(
                go.Scatter(
                    x=[done + 1 + j for j in range(len(epochs))],
                    y=[v if q.finite(v) else None for v in values],
                    yaxis=name,
                    mode="lines+markers",
                    line={"color": _colour(i), "width": 2.5},
                    marker={"size": 6 if len(epochs) < 40 else 3},
                    hoverinfo="text",
                    hovertext=[
                        f"{c.label(stage)}<br>epoch {q.plain(x.epoch)}: {titles[panel]}"
                        f" {q.plain(v, 4)}<br>learning rate {q.plain(x.rate)}"
                        for x, v in zip(epochs, values, strict=True)
                    ],
                )
            )
            done += len(epochs)
    # All panels share the one axis of epochs, drawn below the last.
    layout["xaxis"]["anchor"] = f"y{len(panels)}" if len(panels) > 1 else "y"
    return c.figure(traces, (190 if narrow else 210) * max(len(panels), 1) + 60, **layout)


def sensitivity_section(found: Sequence[Probe], metric: Metric | None) -> Markup:
    """The metric with one layer at a time made sparse; the six most fragile layers in colour."""
    shown = _metric_title(metric)
    drawing, names = fragility_chart("sensitivity", found, metric, "zeros in this layer alone (%)")
    lead = f"{shown.capitalize()} when one layer alone is made sparse."
    lead += f" The most fragile is {q.shortened(names[0], 60)}."
    return section("sensitivity", "What each layer can lose", lead, drawing)


def fragility_chart(
    name: str, found: Sequence[Probe], metric: Metric | None, below: str
) -> tuple[Markup, list[str]]:
    """Curves of the metric over what was taken, and the names in the order of their fragility.

    Args:
        name: of the chart; its id is ``chart-<name>``.
        found: at least one probe.
        metric: that was taken.
        below: title of the horizontal axis.
    """
    probes: dict[str, list[Probe]] = {}
    for probe in found:
        probes.setdefault(probe.layer, []).append(probe)
    higher = metric is None or metric.higher_is_better
    names = sorted(probes, key=lambda name: _fragility(probes[name], higher))
    coloured = names[: len(c.SERIES)]

    def build(narrow: bool) -> "Figure":
        from plotly import graph_objects as go

        traces = []
        for name in reversed(names):
            points = sorted(probes[name], key=lambda x: x.sparsity)
            colour = _colour(coloured.index(name)) if (strong := name in coloured) else OTHERS
            values = [_as_shown(x.metric, metric) for x in points]
            traces.append(
                go.Scatter(
                    x=[100 * x.sparsity for x in points],
                    y=values,
                    mode="lines+markers",
                    line={"color": colour, "width": 2.5 if strong else 1.5},
                    marker={"size": 6 if strong else 3},
                    hoverinfo="text",
                    hovertext=[
                        f"{c.label(name)}<br>{q.percent(x.sparsity, 0)}: {q.plain(v, 4)}"
                        for x, v in zip(points, values, strict=True)
                    ],
                )
            )
        layout = {
            "xaxis": c.axis(below, showgrid=False),
            "yaxis": c.axis(c.label(_metric_title(metric)), nticks=6),
        }
        return c.figure(traces, 320 if narrow else 380, **layout)

    legend = [(q.shortened(name, 40), _colour(i)) for i, name in enumerate(coloured)]
    if len(names) > len(coloured):
        legend.append((f"{len(names) - len(coloured)} others", OTHERS))
    summary = f"{_metric_title(metric)} against {below}, most fragile first: {', '.join(names)}."
    return c.chart(f"chart-{name}", summary, build, legend), names


def _fragility(probes: list[Probe], higher_is_better: bool) -> float:
    """The mean metric over the probes, signed so that the most fragile layer comes first."""
    values = [x.metric for x in probes if q.finite(x.metric)]
    if not values:
        return float("-inf")
    mean = sum(values) / len(values)
    return mean if higher_is_better else -mean
