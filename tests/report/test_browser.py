# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: charts are drawn and legible, nothing overflows, nothing is fetched."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from rarefy.report.page import render

from .browser import CLIPPED, SIZES, Opened, opened
from .sample import RECIPE, sample

CHARTS = ["chart-steps", "chart-layers", "chart-classes", "chart-training", "chart-sensitivity"]
EVIL = '<script>taken=1</script><img src=x onerror="taken=1">'

# Pairs of texts of a chart that cover each other by more than two pixels both ways.
COLLIDING = """id => {
  const texts = [...document.querySelectorAll(`#${id} .plot text`)]
    .filter((text) => text.textContent.trim())
    .map((text) => [text.textContent, text.getBoundingClientRect()]);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  return texts.flatMap(([one, a], i) => texts.slice(i + 1)
    .filter(([, b]) => over(a, b)).map(([two]) => `${one} / ${two}`));
}"""


@pytest.fixture(scope="module", params=SIZES)
def visit(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Opened]:
    found = opened(browser, report, request.param)
    yield found
    found.page.context.close()


def test_charts_are_drawn(visit: Opened) -> None:
    found = visit.page.locator("figure.chart")
    assert [found.nth(i).get_attribute("id") for i in range(found.count())] == CHARTS
    for name in CHARTS:
        plot = visit.page.locator(f"#{name} .plot")
        marks = plot.locator("svg .trace").count() + plot.locator("svg .bars .point").count()
        assert marks > 0, name
        drawn, room = plot.locator(".main-svg").first.bounding_box(), plot.bounding_box()
        assert drawn is not None
        assert room is not None
        assert drawn["width"] == pytest.approx(room["width"], abs=1)
        assert drawn["height"] == pytest.approx(room["height"], abs=1)


def test_labels_are_whole_and_apart(visit: Opened) -> None:
    for name in CHARTS:
        assert visit.page.evaluate(CLIPPED, name) == []
        assert visit.page.evaluate(COLLIDING, name) == []


def test_nothing_overflows(visit: Opened) -> None:
    width = "document.documentElement.scrollWidth <= window.innerWidth"
    assert visit.page.evaluate(width)


def test_before_and_after_fits_without_scrolling(visit: Opened) -> None:
    for name in ("summary", "budget", "classes"):
        fits = f"(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#{name} .scroll'))"
        assert visit.page.evaluate(fits), name


def test_console_is_clean_and_nothing_leaves(visit: Opened) -> None:
    assert visit.complaints == []
    schemes = {url.split(":")[0] for url in visit.requests}
    assert schemes <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in visit.requests) == 1


def test_names_of_the_data_run_no_code(browser: Browser, tmp_path: Path) -> None:
    document = sample()
    for layer in document["layers"]:
        layer["name"] = EVIL
    document["classes"]["names"] = [EVIL] * 10
    document["stages"][1]["name"] = EVIL
    document["notes"] = [EVIL]
    path = tmp_path / "report.html"
    path.write_text(render(document, EVIL), encoding="utf-8")
    found = opened(browser, path, "phone")
    assert found.page.evaluate("typeof taken") == "undefined"
    assert found.page.locator("img").count() == 0
    assert found.complaints == []
    found.page.context.close()


def test_charts_show_names_as_they_are_written(browser: Browser, tmp_path: Path) -> None:
    # Plotly has a markup of its own, which the names must not speak.
    names = ["<b>bold</b>", "a<br>b", '<a href="https://a.b">x</a>', "&lt;"]
    document = {key: sample()[key] for key in ("rarefy", "model", "task", "stages")}
    for stage, name in zip(document["stages"][1:], names, strict=True):
        stage["name"] = name
    path = tmp_path / "report.html"
    path.write_text(render(document, RECIPE), encoding="utf-8")
    found = opened(browser, path, "phone")
    shown = found.page.locator("#chart-steps .annotation-text").all_text_contents()
    assert shown == ["baseline", *names] * 2
    assert found.page.locator("svg a").count() == 0
    found.page.context.close()
