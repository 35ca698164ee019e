# SPDX-License-Identifier: Apache-2.0
"""Recall changes and grown confusions against numbers worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.report import quantities as q
from rarefy.report.confusion import (
    DRAWN,
    drawn_changes,
    increased_confusions,
    recall_changes,
)
from rarefy.report.schema import Classes

from .sample import sample


@pytest.fixture(scope="module")
def digits() -> Classes:
    return Classes.model_validate(sample()["classes"])


def test_worst_class_by_hand(digits: Classes) -> None:
    # Of 974 eights, 5 + 3 were mistaken before and 8 + 5 + 2 after: 966 and 959 recognised.
    worst = recall_changes(digits)[0]
    assert (worst.name, worst.right_before, worst.right_after) == ("8", 966, 959)
    assert worst.change == pytest.approx(-7 / 974)
    assert worst.count_text == f"{q.MINUS}7 of 974"


def test_best_class_by_hand(digits: Classes) -> None:
    # Nines taken for fours: 9 before, 7 after, of 1009.
    best = recall_changes(digits)[-1]
    assert (best.name, best.change) == ("9", pytest.approx(2 / 1009))


def test_grown_confusions_by_hand(digits: Classes) -> None:
    grown = increased_confusions(digits)
    assert (grown[0].true, grown[0].answer, grown[0].before, grown[0].after) == ("8", "3", 5, 8)
    assert [(x.true, x.answer) for x in grown[1:4]] == [("4", "9"), ("8", "2"), ("8", "9")]
    assert len(grown) == 6


def test_classes_without_examples_are_left_out() -> None:
    found = Classes(
        names=["seen", "unseen"],
        confusion_before=[[3, 1], [0, 0]],
        confusion_after=[[4, 0], [0, 0]],
    )
    assert [x.name for x in recall_changes(found)] == ["seen"]
    assert recall_changes(found)[0].change == pytest.approx(0.25)


@st.composite
def confusions(draw: st.DrawFn) -> Classes:
    n = draw(st.integers(min_value=1, max_value=6))
    row = st.lists(st.integers(min_value=0, max_value=9), min_size=n, max_size=n)
    square = st.lists(row, min_size=n, max_size=n)
    names = [str(i) for i in range(n)]
    before, after = draw(square), draw(square)
    return Classes(names=names, confusion_before=before, confusion_after=after)


@given(confusions())
def test_changes_are_ordered_and_bounded(classes: Classes) -> None:
    changes = [x.change for x in recall_changes(classes)]
    assert changes == sorted(changes)
    assert all(-1 <= change <= 1 for change in changes)
    steps = [x.after - x.before for x in increased_confusions(classes)]
    assert steps == sorted(steps, reverse=True)
    assert all(step > 0 for step in steps)


def test_many_classes_show_both_ends() -> None:
    n = 3 * DRAWN
    before = [[100 if i == j else 0 for j in range(n)] for i in range(n)]
    after = [[100 - i if i == j else 0 for j in range(n)] for i in range(n)]
    for i in range(n):
        after[i][(i + 1) % n] = i
    classes = Classes(
        names=[str(i) for i in range(n)], confusion_before=before, confusion_after=after
    )
    shown = drawn_changes(recall_changes(classes))
    assert len(shown) == DRAWN
    assert (shown[0].name, shown[-1].name) == (str(n - 1), "0")
