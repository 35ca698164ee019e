# SPDX-License-Identifier: Apache-2.0
"""Which classes got worse or better, and which mistakes grew: recall per class and confusions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rarefy.report import chart as c
from rarefy.report import quantities as q
from rarefy.report.markup import Markup, element
from rarefy.report.rows import Panel, Place, bars, rows_figure
from rarefy.report.schema import Classes
from rarefy.report.table import Cell, section, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DRAWN = 24  # classes in the chart: the worst half and the best half of so many
LISTED = 8  # confusions in the table


@dataclass(frozen=True)
class RecallChange:
    """One class: how many of its examples there are and how many were recognised."""

    name: str
    right_before: int
    right_after: int
    examples_before: int
    examples_after: int

    @property
    def change(self) -> float:
        """Recall after minus recall before, a fraction of one."""
        return self.right_after / self.examples_after - self.right_before / self.examples_before

    @property
    def count_text(self) -> str:
        """The change in examples, where both sides were counted on equally many."""
        if self.examples_before != self.examples_after:
            return f"of {q.count(self.examples_before)}, then {q.count(self.examples_after)}"
        gained = self.right_after - self.right_before
        return f"{q.signed(gained, q.count(abs(gained)))} of {q.count(self.examples_after)}"


@dataclass(frozen=True)
class ConfusionChange:
    """How often one class was taken for another, before and after."""

    true: str
    answer: str
    before: int
    after: int


def recall_changes(classes: Classes) -> list[RecallChange]:
    """Each class that has examples on both sides, the worst change first."""
    found = []
    for i, name in enumerate(classes.names):
        before, after = classes.confusion_before[i], classes.confusion_after[i]
        if sum(before) and sum(after):
            found.append(RecallChange(name, before[i], after[i], sum(before), sum(after)))
    return sorted(found, key=lambda x: x.change)


def increased_confusions(classes: Classes) -> list[ConfusionChange]:
    """Mistakes that became more frequent, the largest increase first."""
    n = range(len(classes.names))
    before, after = classes.confusion_before, classes.confusion_after
    grown = [(i, j) for i in n for j in n if i != j and after[i][j] > before[i][j]]
    grown.sort(key=lambda at: (before[at[0]][at[1]] - after[at[0]][at[1]], at))
    return [
        ConfusionChange(classes.names[i], classes.names[j], before[i][j], after[i][j])
        for i, j in grown
    ]


def classes_section(classes: Classes) -> Markup:
    """Recall changes as a chart, increased confusions as a table."""
    changes = recall_changes(classes)
    if not changes:
        text = "The evaluation held no examples of any class."
        return section("classes", "Class by class", text)
    return section(
        "classes",
        "Class by class",
        _lead(changes),
        recall_chart(changes),
        confusions_table(classes),
    )


def _lead(changes: list[RecallChange]) -> str:
    worse, better = (
        sum(1 for x in changes if x.change < 0),
        sum(1 for x in changes if x.change > 0),
    )
    if not worse:
        return f"No class lost recall; {better} of {len(changes)} gained."
    first = changes[0]
    return (
        f"{worse} of {len(changes)} classes lost recall, {better} gained. Hardest hit: "
        f"“{q.shortened(first.name, 40)}”, {q.points(first.change)} ({first.count_text})."
    )


def drawn_changes(changes: list[RecallChange]) -> list[RecallChange]:
    """All classes, or the worst and the best half of `DRAWN` where there are more."""
    if len(changes) <= DRAWN:
        return changes
    return changes[: DRAWN // 2] + changes[-(DRAWN // 2) :]


def recall_chart(changes: list[RecallChange]) -> Markup:
    """One bar a class, left of the middle where recall fell."""
    shown = drawn_changes(changes)
    worst = max(0.0, *(-100 * x.change for x in shown))
    best = max(0.0, *(100 * x.change for x in shown))

    def build(narrow: bool) -> "Figure":
        # Beyond the bars' ends the wide chart writes figures, the narrow one above its bars.
        room = (0.06 if narrow else 0.5) * ((worst + best) or 1.0)
        scale = c.axis("change of recall (points)", range=[-worst - room, best + room])
        figures = [f"{q.points(x.change)} ({x.count_text})" for x in shown]
        names = [q.shortened(x.name, 16 if narrow else 26) for x in shown]
        if narrow:
            names = [f"{name}:  {text}" for name, text in zip(names, figures, strict=True)]
            figures = []
        return rows_figure(
            names,
            [Panel(lambda place: [_recall_bars(shown, figures, place)], scale, reference=0.0)],
            height=46 if narrow else 32,
            above=narrow,
            length=60,
        )

    told = "; ".join(f"{x.name} {q.points(x.change)}, {x.count_text}" for x in shown)
    caption = "Recall: the share of a class’s examples that were recognised."
    if len(shown) < len(changes):
        caption += f" The {DRAWN // 2} worst and best of {len(changes)} classes are drawn."
    legend = [("worse", c.WORSE), ("better", c.BETTER)]
    return c.chart("chart-classes", f"Change of recall by class. {told}.", build, legend, caption)


def _recall_bars(shown: list[RecallChange], figures: list[str], place: Place) -> Any:
    return bars(
        place,
        x=[100 * x.change for x in shown],
        y=[i + place.shift for i in range(len(shown))],
        width=0.42,
        marker={"color": [c.WORSE if x.change < 0 else c.BETTER for x in shown]},
        text=figures or None,
        hovertext=[
            f"{c.label(x.name)}<br>"
            f"before: {q.count(x.right_before)} of {q.count(x.examples_before)} recognised<br>"
            f"after: {q.count(x.right_after)} of {q.count(x.examples_after)} recognised"
            for x in shown
        ],
    )


def confusions_table(classes: Classes) -> Markup:
    """The mistakes that grew most, with counts."""
    grown = increased_confusions(classes)
    if not grown:
        return element("p", "No confusion of two classes became more frequent.", class_="absent")
    rows: list[list[str | Cell]] = [
        [
            x.true,
            x.answer,
            q.count(x.before),
            q.count(x.after),
            Cell(f"+{q.count(x.after - x.before)}", tone="worse"),
        ]
        for x in grown[:LISTED]
    ]
    more = f", {LISTED} of {q.count(len(grown))}" if len(grown) > LISTED else ""
    headings = ["True class", "Taken for", "Before", "After", "Change"]
    return table(f"Confusions that grew most{more}; counts of examples", headings, rows, words=2)
