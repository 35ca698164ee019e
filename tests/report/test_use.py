# SPDX-License-Identifier: Apache-2.0
"""The page in use: themes, widths, sorting, copying, printing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser

from .browser import CLIPPED, Opened, eventually, opened
from .sample import RECIPE

# WCAG 2.1, 1.4.3: the ratio of two colours' relative luminances, at least 4.5 for text.
CONTRAST = """pairs => {
  const style = getComputedStyle(document.documentElement);
  const luminance = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const part = (i) => linear(parseInt(hex.slice(i, i + 2), 16) / 255);
    return 0.2126 * part(0) + 0.7152 * part(2) + 0.0722 * part(4);
  };
  return pairs.map(([ink, ground]) => {
    const [a, b] = [luminance(ink), luminance(ground)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""

BARS_IN_THE_THEMES_COLOUR = """(() => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--after").trim();
  const rgb = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(", ");
  const bar = document.querySelector("#chart-steps .bars path");
  return getComputedStyle(bar).fill === `rgb(${rgb})`;
})()"""


@pytest.fixture(scope="module")
def desk(browser: Browser, report: Path) -> Iterator[Opened]:
    """One page to use; each test leaves it light and wide."""
    found = opened(browser, report, "desktop")
    yield found
    found.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(desk: Opened, scheme: Literal["light", "dark"]) -> None:
    grounds = ("--paper", "--card", "--band")
    pairs = [(ink, ground) for ink in ("--ink", "--muted") for ground in grounds]
    pairs += [(tone, "--card") for tone in ("--better", "--worse", "--after")]
    pairs += [("--better", "--tint"), ("--worse", "--alarm")]
    desk.page.emulate_media(color_scheme=scheme)
    ratios = desk.page.evaluate(CONTRAST, pairs)
    desk.page.emulate_media(color_scheme="light")
    poor = [(*pair, ratio) for pair, ratio in zip(pairs, ratios, strict=True) if ratio < 4.5]
    assert poor == []


def test_charts_follow_the_theme_and_the_width(desk: Opened) -> None:
    page = desk.page
    for scheme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert eventually(page, BARS_IN_THE_THEMES_COLOUR)
    width = "document.querySelector('#chart-steps .main-svg').clientWidth"
    wide = page.evaluate(width)
    page.set_viewport_size({"width": 390, "height": 844})
    assert eventually(page, f"{width} < 390")
    assert page.evaluate(CLIPPED, "chart-steps") == []
    page.set_viewport_size({"width": 1280, "height": 900})
    assert eventually(page, f"{width} === {wide}")
    assert desk.complaints == []


def test_layers_sort(desk: Opened) -> None:
    page = desk.page
    names = "[...document.querySelectorAll('#layers tbody th')].map(e => e.textContent)"
    heading = page.get_by_role("button", name="After (B)")
    heading.click()
    assert page.evaluate(names) == ["conv1", "fc2", "conv2", "fc1"]
    heading.click()
    assert page.evaluate(names) == ["fc1", "conv2", "fc2", "conv1"]
    page.locator("#layers").get_by_role("button", name="Layer", exact=True).click()
    assert page.evaluate(names) == ["conv1", "conv2", "fc1", "fc2"]
    assert page.locator("#layers th[aria-sort]").count() == 1


def test_recipe_is_copied(desk: Opened) -> None:
    page = desk.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy recipe.yaml").click()
    label = "document.querySelector('[aria-label=\"Copy recipe.yaml\"]').textContent"
    assert eventually(page, f"{label} === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == RECIPE.rstrip("\n")


def test_printing_is_light_and_fits_the_sheet(desk: Opened) -> None:
    page = desk.page
    page.emulate_media(color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).getPropertyValue('--card').trim()"
    dark = page.evaluate(paper)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = "[...document.querySelectorAll('.main-svg')].map(e => e.clientWidth)"
    assert set(page.evaluate(widths)) == {660}
    assert page.evaluate("[...document.querySelectorAll('details')].every(e => e.open)")
    assert page.evaluate(paper) != dark
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(paper) == dark
    assert min(page.evaluate(widths)) > 660
    page.emulate_media(color_scheme="light")
