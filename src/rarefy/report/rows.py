# SPDX-License-Identifier: Apache-2.0
"""A chart of named rows with one or two panels, beside each other or stacked for a phone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rarefy.report.chart import BAND, BEFORE, INK, SMALL, axis, figure, label

if TYPE_CHECKING:
    from plotly.graph_objects import Bar, Figure

AXIS = 44  # pixels below a panel, for its ticks and title
TOP = 8  # pixels above the first row
GAP = 0.07  # of the width, between two panels


@dataclass(frozen=True)
class Place:
    """Where traces go: Plotly's axis names, and how far below a row's middle the marks sit."""

    x: str
    y: str
    shift: float

    @property
    def axes(self) -> dict[str, str]:
        """The arguments that tie a trace to this panel."""
        return {"xaxis": self.x, "yaxis": self.y}


@dataclass(frozen=True)
class Panel:
    """One quantity drawn for all rows.

    `draw` gives the traces for a place, `scale` is the horizontal axis, `share` the width in
    relation to the other panel, `reference` a value marked by a dotted line.
    """

    draw: Callable[[Place], list[Any]]
    scale: dict[str, Any]
    share: float = 1.0
    reference: float | None = None


def rows_figure(
    names: Sequence[str],
    panels: Sequence[Panel],
    *,
    height: int,
    above: bool,
    stacked: bool = False,
    length: int = 40,
) -> "Figure":
    """Rows downwards, panels across (or below each other when `stacked`).

    Args:
        names: one for each row; equal names stay separate rows.
        panels: one or two.
        height: pixels of a row.
        above: write a row's name above its marks instead of left of them.
        stacked: panels below each other, each with the names.
        length: names are shortened to so many characters.
    """
    floors = len(panels) if stacked else 1
    inner = floors * len(names) * height + (floors - 1) * AXIS  # pixels between the margins
    margin = {"l": 10, "r": 10, "t": TOP, "b": AXIS}
    layout: dict[str, Any] = {"margin": margin}
    traces: list[Any] = []
    shapes: list[dict[str, Any]] = []
    titles: list[dict[str, Any]] = []
    for k, (panel, domain) in enumerate(zip(panels, _domains(panels, stacked), strict=True)):
        floor = k if stacked else 0
        place = Place(_axis_name("x", k), _axis_name("y", floor), 0.2 if above else 0.0)
        layout[_layout_key(place.x)] = panel.scale | {
            "automargin": False,
            "domain": domain,
            "anchor": place.y,
        }
        if k == floor:
            top = 1 - floor * (len(names) * height + AXIS) / inner
            layout[_layout_key(place.y)] = _names_axis(names, above, length) | {
                "domain": [max(0.0, top - len(names) * height / inner), top],
                "anchor": place.x,
            }
            shapes += _bands(len(names), place.y)
            titles += _titles(names, place.y, length) if above else []
        if panel.reference is not None:
            shapes += _reference(panel.reference, place, len(names))
        traces += panel.draw(place)
    layout |= {"shapes": shapes, "annotations": titles, "barmode": "overlay"}
    return figure(traces, inner + TOP + AXIS, **layout)


def bars(place: Place, **settings: Any) -> "Bar":
    """Bars that lie along their rows, figures at their ends, hovering text of our own."""
    from plotly import graph_objects as go

    look: dict[str, Any] = {
        "orientation": "h",
        "textposition": "outside",
        "textfont": SMALL,
        "constraintext": "none",
        "cliponaxis": False,
        "hoverinfo": "text",
    }
    return go.Bar(**place.axes, **look, **settings)


def _axis_name(letter: str, place: int) -> str:
    return f"{letter}{place + 1}" if place else letter


def _layout_key(name: str) -> str:
    return f"{name[0]}axis{name[1:]}"


def _domains(panels: Sequence[Panel], stacked: bool) -> list[list[float]]:
    if stacked or len(panels) == 1:
        return [[0.0, 1.0] for _ in panels]
    first = (1 - GAP) * panels[0].share / (panels[0].share + panels[1].share)
    return [[0.0, first], [first + GAP, 1.0]]


def _names_axis(names: Sequence[str], above: bool, length: int) -> dict[str, Any]:
    """Rows by number, since two steps or layers may share a name."""
    settings: dict[str, Any] = {"range": [len(names) - 0.5, -0.5], "showgrid": False}
    if above:
        return axis(**settings, showticklabels=False, automargin=False)
    texts = [f"{label(name, length)} " for name in names]
    shown: dict[str, Any] = {"tickvals": list(range(len(names))), "ticktext": texts}
    return axis(**settings, **shown, tickfont={"color": INK, "size": 12})


def _bands(rows: int, yref: str) -> list[dict[str, Any]]:
    """A faint band behind every other row, to lead the eye across."""
    frame = {"type": "rect", "layer": "below", "xref": "paper", "yref": yref, "x0": 0, "x1": 1}
    paint = {"fillcolor": BAND, "line": {"width": 0}}
    return [frame | paint | {"y0": i - 0.5, "y1": i + 0.5} for i in range(0, rows, 2)]


def _titles(names: Sequence[str], yref: str, length: int) -> list[dict[str, Any]]:
    """Each row's name in its upper left corner, where it can't collide with the marks below."""
    frame = {"xref": "paper", "yref": yref, "x": 0, "xanchor": "left", "yanchor": "top"}
    look = {"xshift": 6, "showarrow": False, "font": {"color": INK, "size": 13}}
    return [
        frame | look | {"y": i - 0.46, "text": label(name, length)} for i, name in enumerate(names)
    ]


def _reference(value: float, place: Place, rows: int) -> list[dict[str, Any]]:
    """A dotted line down the panel, broken where names stand above the marks."""
    line = {"color": BEFORE, "width": 1.5, "dash": "dot"}
    frame = {"type": "line", "layer": "below", "line": line, "xref": place.x, "yref": place.y}
    top = place.shift - (0.28 if place.shift else 0.5)
    ends = {"x0": value, "x1": value}
    return [frame | ends | {"y0": i + top, "y1": i + 0.5} for i in range(rows)]
