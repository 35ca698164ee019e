# SPDX-License-Identifier: Apache-2.0
"""Tables: captioned, with row headings, scrolling inside their own frame, sortable where asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rarefy.report.markup import Markup, element, group


@dataclass(frozen=True)
class Cell:
    """What a cell shows and, where wanted, more.

    `detail` is a second, smaller line; `key` is what the cell sorts by (its text if nothing else);
    `tone` (``better`` or ``worse``) colours it.
    """

    text: str
    detail: str = ""
    key: float | None = None
    tone: str | None = None


def table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    sortable: bool = False,
    words: int = 1,
) -> Markup:
    """A table whose first column names the row.

    Args:
        caption: says what the table holds; read aloud first.
        headings: one for each column.
        rows: as many cells as headings; plain strings are escaped.
        sortable: headings become buttons that sort by the cells' keys.
        words: so many columns from the left hold words, the others hold figures.
    """
    head = [
        element(
            "th",
            element("button", text, type="button") if sortable else text,
            scope="col",
            class_=None if place < words else "figure",
        )
        for place, text in enumerate(headings)
    ]
    body = [
        element("tr", *(_cell(cell, place, place < words) for place, cell in enumerate(row)))
        for row in rows
    ]
    written = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable" if sortable else None,
    )
    return element("div", written, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cell(content: str | Cell, place: int, words: bool) -> Markup:
    cell = content if isinstance(content, Cell) else Cell(content)
    classes = [c for c in (None if words else "figure", cell.tone) if c]
    return element(
        "td" if place else "th",
        cell.text,
        element("small", cell.detail) if cell.detail else group(),
        scope=None if place else "row",
        class_=" ".join(classes) or None,
        data_key=_sort_key(cell.key),
    )


def _sort_key(key: float | None) -> str | None:
    """The key in JavaScript's spelling; NaN sorts as missing."""
    if key is None or math.isnan(key):
        return None
    return repr(key).replace("inf", "Infinity")


def section(name: str, heading: str, lead: str, *content: str) -> Markup:
    """A part of the page with its heading and the sentence that says what it comes to."""
    return element(
        "section",
        element("h2", heading, id=f"{name}-heading"),
        element("p", lead, class_="lead") if lead else group(),
        *content,
        id=name,
        aria_labelledby=f"{name}-heading",
    )
