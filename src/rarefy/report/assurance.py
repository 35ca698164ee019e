# SPDX-License-Identifier: Apache-2.0
"""Two promises and whether they hold: the file computes what the network does, within budget."""

from rarefy.report import quantities as q
from rarefy.report import verdict
from rarefy.report.markup import Markup, definitions, element
from rarefy.report.schema import BudgetVerdict, Parity
from rarefy.report.table import Cell, section, table


def badge(good: bool, text: str) -> Markup:
    """A short verdict; the sign says it too, not the colour alone."""
    sign = "✓" if good else "✗"
    return element("span", f"{sign} {text}", class_=f"badge {'better' if good else 'worse'}")


def parity_section(parity: Parity | None) -> Markup:
    """How far the exported file's answers are from the network's, and what that means."""
    heading = "Does the file compute what the network computes?"
    if parity is None:
        return section("parity", heading, "This was not checked in this run.")
    runtime = verdict.runtime_name(parity.runtime)
    inputs = f"on {q.count(parity.samples)} inputs" if parity.samples else "on the inputs tried"
    if parity.passed:
        lead = f"Yes: {inputs}, {runtime} and PyTorch agree within the tolerance."
    else:
        lead = f"No: {inputs}, {runtime} and PyTorch differ by more than the tolerance."
    place = parity.first_diverging_layer
    if place is not None:
        lead += f" The first layer whose output differs is {q.shortened(place, 60)}."
    facts = [
        ("Largest relative difference", q.plain(parity.max_relative)),
        ("Tolerance, relative", q.exact(parity.tolerance)),
        ("Largest absolute difference", q.plain(parity.max_absolute)),
        ("Same answer", q.percent(parity.agreement)),
    ]
    return section("parity", heading, lead, definitions(facts))


def budget_section(budget: BudgetVerdict) -> Markup:
    """Each limit, what was found, and how much of the allowance was used."""
    missed = [limit.name for limit in budget.limits if not limit.met]
    lead = f"Asked for {budget.asked}: " + ("met." if budget.met else "not met.")
    if missed:
        lead += f" Missed: {', '.join(missed)}."
    rows: list[list[str | Cell]] = [
        [
            limit.name,
            q.exact(limit.limit),
            q.exact(limit.found),
            _used(limit.found, limit.limit),
            Cell("✓ met" if limit.met else "✗ missed", tone="better" if limit.met else "worse"),
        ]
        for limit in budget.limits
    ]
    headings = ["Limit", "At most", "Found", "Used", "Verdict"]
    content = [table("Limits, in the units of the budget", headings, rows)] if rows else []
    return section("budget", "The budget", lead, *content)


def _used(found: float | None, limit: float | None) -> str:
    if not q.finite(found) or not q.finite(limit) or limit <= 0:
        return q.MISSING
    return q.percent(max(found, 0.0) / limit, 0)
