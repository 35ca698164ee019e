# SPDX-License-Identifier: Apache-2.0
"""What every page of ours is set in: style, script, Plotly's library, navigation; one file, no network."""

import base64
import gzip
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template

from rarefy.report.markup import Markup, element, group


def frame(
    title: str,
    header: Markup,
    sections: Mapping[str, Markup],
    headings: Mapping[str, str],
    *,
    version: str,
    notes: Markup | None = None,
) -> str:
    """A whole page.

    Args:
        title: of the browser's tab.
        header: its top.
        sections: the parts below by their ids, in order.
        headings: what the navigation calls them.
        version: of rarefy.
        notes: stands between header and navigation.
    """
    links = [element("a", headings[name], href=f"#{name}") for name in sections]
    return Template(_resource("page.html")).substitute(
        title=group(title),
        style=_resource("page.css"),
        header=header,
        navigation=element("nav", *links, aria_label="Parts of this report"),
        notes=notes if notes is not None else group(),
        sections=group(*sections.values()),
        version=group(version),
        library=_library(),
        script=_resource("page.js"),
    )


def write_page(page: str, target: Path) -> Path:
    """Writes a page beside its name first and then moves it there, so that it is never half-written."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _resource(name: str) -> str:
    return resources.files("rarefy.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Plotly's own script, packed to a third; no time stamp, so that pages repeat exactly."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")
