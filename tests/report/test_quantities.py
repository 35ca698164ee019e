# SPDX-License-Identifier: Apache-2.0
"""Numbers in words: units, signs, no lost digits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.report import quantities as q


def said(text: str) -> str:
    """The text with ordinary spaces and hyphens."""
    return text.replace(q.SPACE, " ").replace(q.MINUS, "-")


@given(st.floats(min_value=-1e14, max_value=1e14, allow_nan=False, allow_subnormal=False))
def test_plain_keeps_three_digits(value: float) -> None:
    written = float(said(q.plain(value)).replace(",", ""))
    assert written == pytest.approx(value, rel=0.00501, abs=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (9.996, "10.0"), (999.6, "1,000"), (-0.5, "-0.500"), (2e-6, "2e-6")],
)
def test_plain_at_the_edges(value: float, text: str) -> None:
    assert said(q.plain(value)) == text


@pytest.mark.parametrize("write", [q.plain, q.size, q.count, q.amount, q.factor, q.percent])
def test_what_is_no_number_is_said_so(write) -> None:
    assert write(None) == q.MISSING
    assert write(math.nan) == q.MISSING
    assert write(math.inf) == "∞"


@given(st.integers(min_value=0, max_value=10**15))
def test_size_is_within_half_a_per_cent(size: int) -> None:
    number, unit = said(q.size(size)).split(" ")
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert float(number.replace(",", "")) * scale == pytest.approx(size, rel=0.00501)
    assert len(number.replace(".", "").replace(",", "")) <= 4


def test_percent_and_points_are_told_apart() -> None:
    assert said(q.percent(0.9919)) == "99.19 %"
    assert said(q.points(-0.0006)) == "-0.06 pt"
    assert said(q.points(0.0006)) == "+0.06 pt"
    assert said(q.points(-0.000001)) == "0.00 pt"


def test_durations() -> None:
    assert said(q.duration(3.14)) == "3.1 s"
    assert said(q.duration(59.97)) == "1 min 0 s"
    assert said(q.duration(7260)) == "2 h 1 min"


@given(st.floats(min_value=1e-3, max_value=1e9), st.floats(min_value=1e-3, max_value=1e9))
def test_comparison_names_the_direction(before: float, after: float) -> None:
    text = q.compared(before, after, "smaller", "larger")
    expected = "unchanged" if before == after else "smaller" if after < before else "larger"
    assert text.endswith(expected)
    if "×" in text:
        ratio = max(before, after) / min(before, after)
        assert float(text.split("×")[0].replace(",", "")) == pytest.approx(ratio, rel=0.00501)


def test_comparison_with_nothing_left() -> None:
    assert q.compared(5, 0, "fewer", "more") == "infinitely fewer"
    assert q.compared(None, 3, "fewer", "more") == q.MISSING


@given(st.text(max_size=80), st.integers(min_value=3, max_value=40))
def test_shortened_keeps_both_ends(text: str, length: int) -> None:
    short = q.shortened(text, length)
    assert len(short) <= max(length, 0)
    assert short == text or (text.startswith(short.split("…")[0]) and "…" in short)
