# SPDX-License-Identifier: Apache-2.0
"""Finds a Chromium, opens a page in it without network, and writes down what the page lets slip."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

SIZES = {"desktop": (1280, 900), "tablet": (861, 1000), "phone": (390, 844)}
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Texts of a chart that stick out of it by more than a pixel.
CLIPPED = """id => {
  const plot = document.querySelector(`#${id} .plot`);
  const frame = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter((text) => text.textContent.trim())
    .map((text) => [text.textContent, text.getBoundingClientRect()])
    .filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
    .map(([text]) => text);
}"""


def chromium() -> str:
    """The browser to test with."""
    names = ("chromium", "chromium-browser", "google-chrome")
    wished = os.environ.get("RAREFY_CHROMIUM")
    found = next(filter(None, map(shutil.which, [wished] if wished else names)), None)
    if found is None:
        pytest.fail(
            "No Chromium was found under RAREFY_CHROMIUM or on the PATH; `make browser` installs it."
        )
    return found


@dataclass
class Opened:
    """A page and what it let slip while it was used."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def opened(browser: Browser, path: Path, size: str) -> Opened:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="light",
        offline=True,
        has_touch=size == "phone",
        is_mobile=size == "phone",
    )
    page = context.new_page()
    found = Opened(page)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            found.complaints.append(message.text) if message.type in {"warning", "error"} else None
        ),
    )
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    return found


def eventually(page: Page, expression: str) -> bool:
    """Whether a JavaScript expression becomes true within ten seconds.

    The page's policy forbids eval, which Playwright's own waiting needs.
    """
    for _ in range(100):
        if page.evaluate(expression):
            return True
        page.wait_for_timeout(100)
    return False
