# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr with rate and time left; silent where nobody looks."""

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Bar(Protocol):
    """Advances by some units and may say something beside the bar."""

    def __call__(self, advance: int = 1, note: str = "") -> None: ...


QUIET = "RAREFY_QUIET"


def visible() -> bool:
    """Whether stderr is a terminal and RAREFY_QUIET is not set."""
    return sys.stderr.isatty() and not os.environ.get(QUIET)


@contextmanager
def silent() -> Iterator[None]:
    """Hides the bars of what runs inside, for the many short trainings of a search."""
    was = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if was is None:
            del os.environ[QUIET]
        else:
            os.environ[QUIET] = was


@contextmanager
def bar(label: str, total: int | None, unit: str = "batch") -> Iterator[Bar]:
    """A bar named `label` over `total` units (None if unknown), on a terminal only."""
    if not visible():
        yield lambda advance=1, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        job = progress.add_task(label, total=total, rate="", note="")

        def advance(advance: int = 1, note: str = "") -> None:
            speed = progress.tasks[job].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            fields: dict[str, Any] = {"note": note} if note else {}
            progress.update(job, advance=advance, rate=rate, **fields)

        yield advance


def watch(items: Iterable[T], label: str, unit: str = "batch") -> Iterator[T]:
    """Iterates over `items` behind a progress bar."""
    with bar(label, len(items) if isinstance(items, Sized) else None, unit) as advance:
        for item in items:
            yield item
            advance()
