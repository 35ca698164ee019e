# SPDX-License-Identifier: Apache-2.0
"""The file's size and the metric after each step, as one chart."""

from typing import TYPE_CHECKING, Any

from rarefy.report import chart as c
from rarefy.report import quantities as q
from rarefy.report import verdict
from rarefy.report.markup import Markup, element
from rarefy.report.rows import Panel, Place, bars, rows_figure
from rarefy.report.schema import Measurements, Stage

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = (c.AFTER, c.BEFORE)


def drawn_kinds(stages: list[Stage]) -> list[str]:
    """The packed file and the one that the runtime loads; plain weights only in their absence."""
    present = [kind for kind in ("rfy", "onnx") if any(kind in s.bytes for s in stages)]
    return present or [k for k in ("safetensors",) if any(k in s.bytes for s in stages)]


def steps_chart(measurements: Measurements) -> Markup:
    """Bars of the file's size and a trail of the metric, one row a stage."""
    stages = measurements.stages
    kinds = drawn_kinds(stages)
    measured = [s for s in stages if s.metric and q.finite(s.metric.value)]
    if not kinds and not measured:
        return element("p", "Neither file sizes nor a metric were measured.", class_="absent")

    def build(narrow: bool) -> "Figure":
        panels = [_size_panel(stages, kinds, narrow)] if kinds else []
        panels += [_metric_panel(stages, narrow)] if measured else []
        return rows_figure(
            [s.name for s in stages],
            panels,
            height=66 if len(kinds) > 1 else 58,
            above=True,
            stacked=narrow,
            length=34 if narrow else 76,
        )

    told = "; ".join(
        f"{s.name}: {', '.join(q.size(s.bytes.get(kind)) for kind in kinds)}, "
        f"{s.metric.name if s.metric else 'metric'} {verdict.metric_text(s.metric)}"
        for s in stages
    )
    legend = [
        (verdict.FILE_NAMES[kind], colour) for kind, colour in zip(kinds, COLOURS, strict=False)
    ]
    return c.chart("chart-steps", f"File size and metric after each stage. {told}.", build, legend)


def _size_panel(stages: list[Stage], kinds: list[str], narrow: bool) -> Panel:
    largest = max(s.bytes[kind] for s in stages for kind in kinds if kind in s.bytes)
    divisor, unit = q.scaled_unit(largest)
    room = 1.3 if narrow else 1.15  # for the figure at the longest bar's end
    scale = c.axis(f"file size ({unit})", range=[0, max(largest / divisor, 1e-9) * room])

    def draw(place: Place) -> list[Any]:
        shifts = (0.2,) if len(kinds) == 1 else (0.06, 0.31)
        return [
            _bars(stages, kind, shift, colour, divisor, place)
            for kind, shift, colour in zip(kinds, shifts, COLOURS, strict=False)
        ]

    return Panel(draw, scale, share=2.0)


def _bars(
    stages: list[Stage], kind: str, shift: float, colour: str, divisor: float, place: Place
) -> Any:
    found = [(i, s, s.bytes[kind]) for i, s in enumerate(stages) if kind in s.bytes]
    first = found[0][2]
    return bars(
        place,
        x=[size / divisor for *_, size in found],
        y=[i + shift for i, *_ in found],
        width=0.22,
        marker={"color": colour},
        text=[q.size(size) for *_, size in found],
        hovertext=[
            f"{c.label(s.name)}<br>{verdict.FILE_NAMES[kind]}: {q.count(size)} bytes"
            f"<br>at first: {q.count(first)} bytes"
            for _, s, size in found
        ],
    )


def _metric_panel(stages: list[Stage], narrow: bool) -> Panel:
    found = [
        (i, s.name, s.metric, s.metric.value)
        for i, s in enumerate(stages)
        if s.metric is not None and q.finite(s.metric.value)
    ]
    first = found[0][2]
    factor = 100.0 if all(metric.is_fraction for _, _, metric, _ in found) else 1.0
    values = [factor * value for *_, value in found]
    spread = (max(values) - min(values)) or max(abs(values[0]) * 0.01, 1e-9)
    # The figures stand in a column at the right edge and need room there.
    shown = [min(values) - 0.15 * spread, max(values) + (0.45 if narrow else 0.6) * spread]
    title = f"{c.label(first.name, 24)}{' (%)' if factor > 1 else ''}"
    hover = [
        f"{c.label(name)}<br>{c.label(metric.name)} {verdict.metric_text(metric)}"
        f" through {c.label(verdict.runtime_name(metric.through))}"
        f"<br>{verdict.difference_text(first, metric)} against the first"
        for _, name, metric, _ in found
    ]

    def draw(place: Place) -> list[Any]:
        from plotly import graph_objects as go

        rows = [i + place.shift for i, *_ in found]
        ends: dict[str, Any] = place.axes | {"y": rows, "hoverinfo": "text", "hovertext": hover}
        return [
            go.Scatter(
                **place.axes,
                x=[x for value in values for x in (values[0], value, None)],
                y=[y for row in rows for y in (row, row, None)],
                mode="lines",
                line={"color": c.BEFORE, "width": 2},
                hoverinfo="skip",
            ),
            go.Scatter(**ends, x=values, mode="markers", marker={"color": c.AFTER, "size": 11}),
            go.Scatter(
                **place.axes,
                x=[shown[1]] * len(stages),
                y=[i + place.shift for i in range(len(stages))],
                mode="text",
                text=[f"{verdict.metric_text(s.metric)} " for s in stages],
                hoverinfo="skip",
                textposition="middle left",
                textfont=c.SMALL,
            ),
        ]

    reference = values[0] if found[0][0] == 0 else None
    return Panel(draw, c.axis(title, range=shown, nticks=5), reference=reference)
