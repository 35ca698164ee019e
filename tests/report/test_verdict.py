# SPDX-License-Identifier: Apache-2.0
"""The verdict says what the numbers say, and no more."""

from typing import Any

import pytest

from rarefy.report import quantities as q
from rarefy.report import verdict
from rarefy.report.schema import Latency, Measurements, Metric

from .sample import sample

TIMED: dict[str, Any] = {
    "runtime": "onnxruntime",
    "batch": 1,
    "threads": 2,
    "median": 2.0,
    "iqr": [1.9, 2.1],
}


def measured(**changes: Any) -> Measurements:
    return Measurements.model_validate(sample() | changes)


def latency(**changes: Any) -> Latency:
    return Latency.model_validate(TIMED | changes)


def test_size_counts_plain_weights_against_the_packed_file() -> None:
    found = verdict.size_change(measured())
    assert found is not None
    assert found.ratio == pytest.approx(1_725_144 / 43_912)
    assert (found.kind_before, found.kind_after) == ("safetensors", "rfy")


def test_size_without_files() -> None:
    document = sample()
    document["stages"][-1]["bytes"] = {}
    assert verdict.size_change(Measurements.model_validate(document)) is None


def test_interleaved_ratio_is_turned_into_speed() -> None:
    change = verdict.speed_change(latency(), latency(ratio_to_baseline=0.5, ratio_iqr=[0.4, 0.625]))
    assert change == verdict.SpeedChange(2.0, 1.6, 2.5)
    assert change.word == "2.00× faster"


def test_slower_is_called_slower() -> None:
    change = verdict.speed_change(latency(), latency(ratio_to_baseline=1.25, ratio_iqr=[1.2, 1.3]))
    assert change is not None
    assert change.word == "1.25× slower"


def test_a_spread_around_one_is_no_gain() -> None:
    change = verdict.speed_change(latency(), latency(ratio_to_baseline=0.8, ratio_iqr=[0.7, 1.1]))
    assert change is not None
    assert change.word == "as fast as before"


def test_medians_compare_only_under_like_conditions() -> None:
    assert verdict.speed_change(latency(), latency(median=1.0)) == verdict.SpeedChange(2.0)
    assert verdict.speed_change(latency(), latency(median=1.0, batch=8)) is None
    assert verdict.speed_change(latency(), latency(median=1.0, precision="int8")) is None


@pytest.mark.parametrize(
    ("before", "after", "text", "worse"),
    [
        (0.9925, 0.9918, "−0.07 pt", True),
        (0.5, 0.75, "+25.00 pt", False),
        (1.0, 1.0, "0.00 pt", False),
    ],
)
def test_fractions_differ_in_points(before: float, after: float, text: str, worse: bool) -> None:
    first, last = Metric(name="accuracy", value=before), Metric(name="accuracy", value=after)
    assert verdict.difference_text(first, last).replace(q.SPACE, " ") == text
    assert verdict.got_worse(first, last) is worse


def test_perplexity_is_no_percentage_and_better_when_lower() -> None:
    first = Metric(name="perplexity", value=80.0, higher_is_better=False)
    last = Metric(name="perplexity", value=92.5, higher_is_better=False)
    assert verdict.metric_text(last) == "92.50"
    assert verdict.difference_text(first, last) == "+12.5"
    assert verdict.got_worse(first, last)
    assert verdict.metric_clause(first, last) == "perplexity 12.5 higher"


def test_whole_verdict() -> None:
    said = [clause.replace(q.SPACE, " ") for clause in verdict.clauses(measured())]
    assert said == ["39.3× smaller", "as fast as before", "accuracy 0.07 points lower"]
