# SPDX-License-Identifier: Apache-2.0
"""Where the bytes went, layer by layer: a chart of the largest and a sortable table of all."""

import math
from typing import TYPE_CHECKING, Any

from rarefy.report import chart as c
from rarefy.report import quantities as q
from rarefy.report.markup import Markup
from rarefy.report.rows import Panel, Place, bars, rows_figure
from rarefy.report.schema import Layer
from rarefy.report.table import Cell, section, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DRAWN = 32  # layers in the chart; the table lists all


def layers_section(layers: list[Layer]) -> Markup:
    """Bytes before and after and sparsity of each layer."""
    before, after = sum(x.bytes_before for x in layers), sum(x.bytes_after for x in layers)
    weights, kept = sum(x.parameters for x in layers), sum(x.nonzero for x in layers)
    largest = max(layers, key=lambda x: x.bytes_after)
    lead = f"{len(layers)} layers hold {q.size(before)} before and {q.size(after)} after"
    if weights:
        lead += f"; {q.percent(1 - kept / weights, 1)} of their weights are zero"
    if after:
        share = q.percent(largest.bytes_after / after, 0)
        lead += f". {q.shortened(largest.name, 60)} now takes {share} of what is left"
    return section(
        "layers", "Layer by layer", f"{lead}.", layers_chart(layers), layers_table(layers)
    )


def largest_layers(layers: list[Layer]) -> list[Layer]:
    """The layers that the chart shows, in the network's order."""
    chosen = sorted(range(len(layers)), key=lambda i: -layers[i].bytes_before)[:DRAWN]
    return [layers[i] for i in sorted(chosen)]


def common_prefix(names: list[str]) -> str:
    """The dotted beginning that all names share and that tells none of them from another.

    Examples:
        >>> common_prefix(["features.block1.conv1", "features.block1.conv2"])
        'features.block1.'
    """
    paths = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared) if len(names) > 1 else ""


def layers_chart(layers: list[Layer]) -> Markup:
    """Bytes on a logarithmic axis (equal distances are equal factors), sparsity beside it."""
    shown = largest_layers(layers)
    prefix = common_prefix([x.name for x in shown])

    def build(narrow: bool) -> "Figure":
        return rows_figure(
            [x.name.removeprefix(prefix) for x in shown],
            [_bytes_panel(shown, narrow), _sparsity_panel(shown)],
            height=50 if narrow else 34,
            above=narrow,
            length=34,
        )

    told = "; ".join(
        f"{x.name}: {q.size(x.bytes_before)} to {q.size(x.bytes_after)}, "
        f"{q.percent(x.sparsity, 0)} zeros"
        for x in shown
    )
    legend = [
        ("bytes before", c.BEFORE),
        ("bytes after", c.AFTER),
        ("share of weights that are zero", "var(--zeros)"),
    ]
    caption = f"Names without their common beginning, {prefix}" if prefix else ""
    if len(layers) > len(shown):
        more = f"The {len(shown)} largest layers; the table lists all {len(layers)}."
        caption = f"{more} {caption}".strip()
    return c.chart("chart-layers", f"Bytes and sparsity of layers. {told}.", build, legend, caption)


def _byte_axis(low: float, high: float, narrow: bool) -> dict[str, Any]:
    """Powers of ten with their units, and room on the left for the factors."""
    first, last = math.log10(low), math.log10(high)
    span = max(last - first, 0.5)
    shown = [first - (0.45 if narrow else 0.28) * span, last + 0.1 * span]
    powers = range(math.ceil(shown[0]), math.floor(shown[1]) + 1)
    step = 2 if narrow and len(powers) > 4 else 1
    ticks = [10.0**power for power in powers[::step]]
    texts = ["{1:g}{2}{0}".format(*_unit(tick), q.SPACE) for tick in ticks]
    return c.axis("bytes, log scale", type="log", range=shown, tickvals=ticks, ticktext=texts)


def _unit(value: float) -> tuple[str, float]:
    divisor, unit = q.scaled_unit(value)
    return unit, value / divisor


def _bytes_panel(layers: list[Layer], narrow: bool) -> Panel:
    # Zero bytes (a layer that a step added or took away) have no place on a logarithmic axis.
    ends = [(x.bytes_before or None, x.bytes_after or None) for x in layers]
    drawn = [size for pair in ends for size in pair if size] or [1]
    scale = _byte_axis(min(drawn), max(drawn), narrow)

    def draw(place: Place) -> list[Any]:
        from plotly import graph_objects as go

        rows = [i + place.shift for i in range(len(layers))]
        links_x = [x for before, after in ends for x in (before, after, None)]
        links_y = [y for row in rows for y in (row, row, None)]
        link = {"color": c.BEFORE, "width": 2}
        hover = [
            f"{c.label(x.name)}<br>{q.count(x.bytes_before)} to {q.count(x.bytes_after)} bytes"
            f"<br>{q.compared(x.bytes_before, x.bytes_after, 'smaller', 'larger')}"
            f"<br>stored {c.label(x.form)}"
            for x in layers
        ]
        dots: dict[str, Any] = place.axes | {"y": rows, "hoverinfo": "text", "hovertext": hover}
        before = {"color": "var(--card)", "size": 10, "line": {"color": c.BEFORE, "width": 2}}
        return [
            go.Scatter(
                **place.axes, x=links_x, y=links_y, mode="lines", line=link, hoverinfo="skip"
            ),
            go.Scatter(**dots, x=[x for x, _ in ends], mode="markers", marker=before),
            go.Scatter(
                **dots,
                x=[x for _, x in ends],
                mode="markers+text",
                marker={"color": c.AFTER, "size": 11},
                text=[f"{_shrink(x)}  " for x in layers],
                textposition="middle left",
                textfont=c.SMALL,
                cliponaxis=False,
            ),
        ]

    return Panel(draw, scale, share=1.7)


def _shrink(layer: Layer) -> str:
    """The factor of the bytes where the layer shrank, nothing where it grew or stayed."""
    if not 0 < layer.bytes_after < layer.bytes_before:
        return ""
    return q.factor(layer.bytes_before / layer.bytes_after)


def _sparsity_panel(layers: list[Layer]) -> Panel:
    def draw(place: Place) -> list[Any]:
        hover = [
            f"{c.label(x.name)}<br>{q.count(x.nonzero)} of {q.count(x.parameters)} are not zero"
            for x in layers
        ]
        return [
            bars(
                place,
                x=[100 * x.sparsity for x in layers],
                y=[i + place.shift for i in range(len(layers))],
                width=0.36,
                marker={"color": "var(--zeros)"},
                text=[q.percent(x.sparsity, 0) for x in layers],
                hovertext=hover,
            )
        ]

    scale = c.axis("zeros (%)", range=[0, 132], tickvals=[0, 50, 100])
    return Panel(draw, scale)


def layers_table(layers: list[Layer]) -> Markup:
    """Every layer; the headings sort."""
    headings = ["Layer", "Type", "Shape", "Stored as", "Parameters", "Zeros", "Distinct"]
    headings += ["Before (B)", "After (B)", "Factor", "SQNR (dB)"]
    rows = [
        [
            Cell(x.name),
            Cell(x.type),
            Cell(" × ".join(map(str, x.shape)) or "scalar", key=math.prod(x.shape)),
            Cell(x.form),
            Cell(q.count(x.parameters), key=x.parameters),
            Cell(q.percent(x.sparsity, 1), key=x.sparsity),
            Cell(q.count(x.distinct), key=x.distinct),
            Cell(q.count(x.bytes_before), key=x.bytes_before),
            Cell(q.count(x.bytes_after), key=x.bytes_after),
            Cell(*_factor(x)),
            Cell(q.plain(x.sqnr_db), key=x.sqnr_db),
        ]
        for x in layers
    ]
    return table("Every layer; choose a heading to sort", headings, rows, sortable=True, words=4)


def _factor(layer: Layer) -> tuple[str, str, float | None]:
    ratio = layer.bytes_before / layer.bytes_after if layer.bytes_after else math.inf
    return q.factor(ratio), "", ratio
