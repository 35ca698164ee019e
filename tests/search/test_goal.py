# SPDX-License-Identifier: Apache-2.0
"""What is better than what, under which budget."""

import pytest

from rarefy.budget import Budget
from rarefy.search.goal import Goal, Outcome
from rarefy.task import Metric, accuracy, correct

LOSS = Metric("loss", correct, higher_is_better=False)


def goal(text: str, metric: Metric = accuracy, baseline: float = 0.9) -> Goal:
    return Goal.of(Budget.parse(text), 1000, baseline, metric)


def test_shares_become_bytes() -> None:
    found = goal("size=1/8,metric_drop=0.01")
    assert (found.size, found.drop, found.smallest) == (125, 0.01, False)
    assert goal("size=200").size == 200
    assert found.share_without(25) == pytest.approx((125 * 0.97 - 25) / 1000)
    assert goal("metric_drop=0.01").share_without(25) is None
    assert found.share_without(10**6) == 0


def test_with_a_size_the_metric_counts_else_the_size() -> None:
    sized, free = goal("size=1/8"), goal("metric_drop=0.1")
    small, good = Outcome(50, 0.8), Outcome(100, 0.85)
    assert sized.score(good) > sized.score(small)
    assert free.score(small) > free.score(good)
    falling = goal("size=1/8", LOSS)
    assert falling.score(Outcome(1, 0.5)) > falling.score(Outcome(1, 0.6))


@pytest.mark.parametrize(
    ("outcome", "excess"),
    [
        (Outcome(125, 0.89), 0.0),
        (Outcome(250, 0.89), 1.0),
        (Outcome(125, 0.80), 0.1),
        (Outcome(250, 0.80), 1.1),
        (Outcome(1, 0.95), 0.0),
    ],
)
def test_excess_adds_up_what_is_missed(outcome: Outcome, excess: float) -> None:
    assert goal("size=1/8,metric_drop=0.01").excess(outcome) == pytest.approx(excess, abs=1e-9)


def test_quick_limits_allow_for_what_training_changes() -> None:
    sized, free = goal("size=1/8,metric_drop=0"), goal("metric_drop=0.01")
    assert sized.quick_excess(Outcome(124, 0.9)) > 0  # training may add bytes
    assert sized.quick_excess(Outcome(121, 0.5)) <= 0  # and bring the metric back
    assert free.quick_excess(Outcome(999, 0.88)) <= 0
    assert free.quick_excess(Outcome(1, 0.8)) > 0


def test_finalists_with_a_size_are_the_best_within_it() -> None:
    tried = [
        ("large", Outcome(500, 0.9)),
        ("good", Outcome(120, 0.85)),
        ("as good", Outcome(100, 0.85)),
        ("bad", Outcome(20, 0.4)),
        ("good", Outcome(120, 0.85)),
    ]
    assert goal("size=1/8").finalists(tried, 3) == ["as good", "good", "bad"]
    assert goal("size=1/100").finalists(tried, 1) == ["bad"]


def test_finalists_without_a_size_grow_until_one_is_safe() -> None:
    tried = [
        ("tiny", Outcome(10, 0.5)),
        ("small", Outcome(20, 0.877)),
        ("dominated", Outcome(25, 0.874)),
        ("medium", Outcome(30, 0.88)),
        ("larger", Outcome(40, 0.885)),
        ("safe", Outcome(90, 0.895)),
        ("best", Outcome(200, 0.9)),
    ]
    # 0.006 is 0.7 % of the baseline, and full training may bring back 2 % more
    found = goal("metric_drop=0.006").finalists(tried, 4)
    assert found == ["small", "medium", "larger", "safe"]
    assert goal("metric_drop=0.006").finalists(tried, 2) == ["small", "safe"]
    assert goal("metric_drop=0").finalists(tried[:1], 3) == ["tiny"]
