# SPDX-License-Identifier: Apache-2.0
"""Budgets: spellings of quantities, and verdicts on results."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.budget import Absolute, Budget, quantity
from rarefy.errors import RecipeError


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "1/8", 0.125),
        ("size", "12%", 0.12),
        ("size", "44kB", 44e3),
        ("size", "44 kB", 44e3),
        ("memory", "1MiB", 2.0**20),
        ("latency", "5ms", 5.0),
        ("latency", "250us", 0.25),
        ("latency", "1.5s", 1500.0),
        ("macs", "3e6", 3e6),
        ("macs", "2M", 2e6),
        ("energy", "20J", 2e7),
        ("energy", "2mJ", 2e3),
        ("size", "1/3 MB", 1e6 / 3),
        ("metric_drop", "150%", 1.5),
    ],
)
def test_quantities(name: str, text: str, value: float) -> None:
    found = quantity(text, "budget", name)
    assert found == pytest.approx(value, rel=1e-12)
    assert isinstance(found, Absolute) is (text[-1].isalpha())


@pytest.mark.parametrize(
    "text", ["", "small", "1/0", "3e9e9", "1e999", "--1", "1/2/3", "nan", "inf"]
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(RecipeError, match="is no quantity; write 1/8, 12%, 44kB or 5ms"):
        quantity(text, "budget")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("size=5ms", "'5ms' is no quantity of bytes; its units are b, kb"),
        ("size=3 apples", "'3 apples' is no quantity of bytes"),
        ("latency=5msec", "'5msec' is no quantity of milliseconds; its units are us, ms, s"),
        ("latency=3kB", "'3kB' is no quantity of milliseconds"),
        ("metric_drop=3kB", "'3kB' is no quantity of the metric; it has no unit"),
        ("size=150%", "'150%' is more than the baseline; write a share below 100%"),
        ("size=1/8, size=1/4", "'size' is limited twice"),
    ],
)
def test_units_of_something_else_and_limits_given_twice(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Budget.parse(text)
    assert str(caught.value).startswith(f"budget '{text}': {complaint}")


def test_a_number_with_a_unit_is_never_a_share() -> None:
    budget = Budget.parse("latency=0.5ms,size=0.5,energy=1uJ")
    assert budget.limit("latency", 4.0) == 0.5
    assert budget.limit("energy", 4.0) == 1.0
    assert budget.limit("size", 4.0) == 2.0
    assert budget.limit("macs", 4.0) is None
    assert repr(budget) != repr(Budget(latency=0.5, size=0.5, energy=1.0)), "told apart in a cache"
    (latency, _, _) = sorted(
        budget.verdicts({}, {"latency": 0.5, "size": 1.0, "energy": 1.0}, 0.0),
        key=lambda v: v.name != "latency",
    )
    assert (latency.limit, latency.met) == (0.5, True)


@given(
    st.floats(1e-6, 1e9).map(lambda x: float(f"{x:.6g}")),
    st.floats(0, 1).map(lambda x: float(f"{x:.6g}")),
)
def test_parsing_reads_what_was_written(size: float, drop: float) -> None:
    assert Budget.parse(f" size = {size!r} , metric_drop={drop!r},") == Budget(
        size=size, metric_drop=drop
    )


def test_misspelt_limit_names_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        Budget.parse("sise=1/8")
    assert str(caught.value) == (
        "budget 'sise=1/8': there is no limit 'sise'; did you mean 'size'?"
    )


@pytest.mark.parametrize("fields", [{"size": 0.0}, {"size": -1.0}, {"metric_drop": -0.1}])
def test_limits_out_of_range(fields: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="is not allowed: it must be"):
        Budget(**fields)


def test_nan_is_no_limit() -> None:
    with pytest.raises(RecipeError):
        Budget(size=math.nan)


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(RecipeError, match="the budget is empty"):
        Budget.parse("")
    assert Budget(metric_drop=0).metric_drop == 0


def test_verdicts_tell_shares_from_absolute_limits() -> None:
    budget = Budget(size=1 / 8, parameters=500, metric_drop=0.01)
    before = {"size": 800.0, "parameters": 1000.0}
    found = budget.verdicts(before, {"size": 100.0, "parameters": 501.0}, drop=0.01)
    assert [(v.name, v.limit, v.found, v.met) for v in found] == [
        ("size", 100.0, 100.0, True),
        ("parameters", 500, 501.0, False),
        ("metric_drop", 0.01, 0.01, True),
    ]


def test_metric_drop_is_absolute_and_unmeasured_costs_are_not_met() -> None:
    budget = Budget(latency=0.5, metric_drop=0.5)
    latency, drop = budget.verdicts({"latency": 4.0}, {"latency": None}, drop=0.6)
    assert (latency.limit, latency.found, latency.met) == (2.0, None, False)
    assert (drop.limit, drop.met) == (0.5, False)
    (unknown,) = Budget(macs=0.5).verdicts({"macs": None}, {"macs": 3.0}, drop=0.0)
    assert not unknown.met
