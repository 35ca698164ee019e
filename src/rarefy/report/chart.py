# SPDX-License-Identifier: Apache-2.0
"""The frame of every chart: house style, one figure for wide and one for narrow screens, a legend.

Colours are CSS variables (``var(--after)``); ``page.js`` replaces them by the values of the current
light or dark theme, so that every colour has one home, ``page.css``.
"""

import html
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rarefy.report import quantities as q
from rarefy.report.markup import Markup, element, embedded_json, group

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, MUTED, GRID, BAND = "var(--ink)", "var(--muted)", "var(--grid)", "var(--band)"
BEFORE, AFTER, BETTER, WORSE = "var(--before)", "var(--after)", "var(--better)", "var(--worse)"
SERIES = tuple(f"var(--series-{i})" for i in range(1, 7))
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SMALL = {"size": 12, "color": INK}


def label(text: str, length: int = 60) -> str:
    """Text of the data for use inside a chart: shortened, and its markup made harmless."""
    return html.escape(q.shortened(" ".join(text.split()), length), quote=False)


def axis(title: str = "", **settings: Any) -> dict[str, Any]:
    """An axis in house style: no zooming (a page must scroll under a finger), faint grid."""
    return {
        "title": {"text": title, "font": {"color": MUTED, "size": 12}, "standoff": 6},
        "fixedrange": True,
        "automargin": True,
        "zeroline": False,
        "showline": False,
        "gridcolor": GRID,
        "tickfont": {"color": MUTED, "size": 12},
        "ticks": "",
    } | settings


def figure(traces: list[Any], height: int, **layout: Any) -> "Figure":
    """A Plotly figure in house style, `height` pixels high."""
    from plotly import graph_objects as go

    house: dict[str, Any] = {
        "template": go.layout.Template(),
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "color": INK, "size": 13},
        "dragmode": False,
        "hovermode": "closest",
        "showlegend": False,
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--rule)",
            "font": {"color": INK, "family": FONT, "size": 13},
            "align": "left",
        },
    }
    return go.Figure(data=traces, layout=house | layout)


def chart(
    name: str,
    summary: str,
    build: Callable[[bool], "Figure"],
    legend: Sequence[tuple[str, str]] = (),
    caption: str = "",
) -> Markup:
    """A chart as the page holds it.

    Args:
        name: the element's id, unique on the page.
        summary: what the chart shows, for those who can't see it.
        build: gives the figure; its argument is true for a narrow (phone) screen.
        legend: what the colours mean, pairs of (text, CSS colour).
        caption: a line below.
    """
    figures = {which: build(which == "narrow") for which in ("wide", "narrow")}
    heights = ";".join(f"--{which}:{f.layout.height}px" for which, f in figures.items())
    keys = [
        element("li", element("span", class_="key", style=f"background:{colour}"), text)
        for text, colour in legend
    ]
    return element(
        "figure",
        element("ul", *keys, class_="legend") if keys else group(),
        element("div", class_="plot", role="img", aria_label=summary, style=heights),
        element(
            "script",
            # Plotly's own writer turns what JSON can't hold (NaN, infinity) into null: a gap.
            embedded_json({which: json.loads(f.to_json()) for which, f in figures.items()}),
            type="application/json",
        ),
        element("figcaption", caption) if caption else group(),
        class_="chart",
        id=name,
    )
