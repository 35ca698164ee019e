# SPDX-License-Identifier: Apache-2.0
"""A browser and the sample's page, started and written only by the tests that ask for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from rarefy.report.page import render

from .browser import QUIET, chromium
from .sample import RECIPE, sample


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(sample(), RECIPE), encoding="utf-8")
    return path
