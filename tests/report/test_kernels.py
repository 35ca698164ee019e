# SPDX-License-Identifier: Apache-2.0
"""Speeds of kernels as parts of the ceilings of their arithmetic, and what the page says of them."""

import pytest

from rarefy.report.kernels import lead, overall, share, speed
from rarefy.report.page import render
from rarefy.report.schema import Kernel, read

from .reader import Reader
from .sample import RECIPE, sample


def kernel(macs: int | None, microseconds: float | None, integer: bool = True) -> Kernel:
    return Kernel(
        layer="a", operator="Conv", integer=integer, kernel="QLinearConv",
        macs=macs, microseconds=microseconds,
    )  # fmt: skip


CEILINGS = {"int8": 100.0, "float32": 20.0}


def test_speed_is_macs_over_time() -> None:
    assert speed(kernel(2_000_000, 40.0)) == 50.0  # two million in 40 µs
    assert speed(kernel(None, 40.0)) is None
    assert speed(kernel(2_000_000, None)) is None


def test_each_arithmetic_has_a_ceiling_of_its_own() -> None:
    assert share(kernel(2_000_000, 40.0), CEILINGS) == 0.5
    assert share(kernel(200_000, 40.0, integer=False), CEILINGS) == 0.25
    assert share(kernel(2_000_000, 40.0), {}) is None


def test_overall_is_the_ideal_time_over_the_time_taken() -> None:
    kernels = [kernel(2_000_000, 40.0), kernel(400_000, 40.0, integer=False), kernel(9, None)]
    ideal = 2_000_000 / 100e3 + 400_000 / 20e3  # µs at the ceilings
    assert overall(kernels, CEILINGS) == pytest.approx(ideal / 80)
    assert overall([kernel(9, None)], CEILINGS) is None


def test_the_page_lists_kernels_and_why_one_stayed_float() -> None:
    page = Reader(render(sample(), RECIPE))
    assert "kernels" in page.ids
    words = " ".join(page.text)
    assert "computes 2 of 3 convolutions and matrix products in integers" in words
    assert "its result leaves the network" in words
    part = (288_000 / 80e3 + 400_000 / 80e3) / 22
    assert f"Together they run at {100 * part:.0f}" in words


def test_without_times_only_the_kernels_are_told() -> None:
    document = sample()
    for found in document["kernels"]:
        found["microseconds"] = None
    words = lead(read(document, "sample"))
    assert words.endswith("in integers.")
