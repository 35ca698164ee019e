# SPDX-License-Identifier: Apache-2.0
"""Reads a page as text: its elements, words and the figures inside its charts."""

import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

from rarefy.report import quantities as q
from rarefy.report.page import render

from .sample import RECIPE


class Reader(HTMLParser):
    """Collects elements, links, text and the charts' figures of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.embedded: list[str] = []
        self.ids: set[str] = set()
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids |= {value for name, value in attrs if name == "id" and value}
        kind = dict(attrs).get("type") or ""
        self._inside = f"{tag} {kind}".strip()

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script application/json":
            self.embedded.append(data)
        elif not self._inside.startswith(("script", "style")):
            self.text.append(data.replace(q.SPACE, " ").replace(q.MINUS, "-"))

    def figure(self, place: int, which: str = "wide") -> dict[str, Any]:
        """A chart's figure; what JSON forbids (NaN) is an error."""

        def refuse(name: str) -> None:
            raise ValueError(name)

        return json.loads(self.embedded[place], parse_constant=refuse)[which]


def read(document: dict[str, Any]) -> Reader:
    return Reader(render(document, RECIPE))
