# SPDX-License-Identifier: Apache-2.0
"""HTML built from functions: what is not marked as HTML is escaped, so data can't become code."""

import html
import json
from typing import Any


class Markup(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | float | bool | None) -> Markup:
    """One HTML element.

    Args:
        tag: the element's name, written by us.
        children: plain strings (escaped) or :class:`Markup` (kept).
        attributes: ``class_`` becomes ``class``, ``aria_label`` becomes ``aria-label``; ``None``
            and ``False`` leave the attribute out, ``True`` writes it without a value.

    Examples:
        >>> element("td", "a < b", class_="name")
        '<td class="name">a &lt; b</td>'
    """
    written = [tag]
    for name, value in attributes.items():
        spelling = name.rstrip("_").replace("_", "-")
        if value is True:
            written.append(spelling)
        elif value is not None and value is not False:
            written.append(f'{spelling}="{html.escape(str(value))}"')
    return Markup(f"<{' '.join(written)}>{group(*children)}</{tag}>")


def group(*children: str) -> Markup:
    """Several pieces one after the other; plain strings among them are escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def embedded_json(value: Any) -> Markup:
    """JSON that may stand inside a ``<script>`` element: no ``<`` of the data can close it."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def definitions(pairs: list[tuple[str, str]]) -> Markup:
    """A list of terms and what stands for each."""
    rows = [element("div", element("dt", term), element("dd", text)) for term, text in pairs]
    return element("dl", *rows, class_="facts")
