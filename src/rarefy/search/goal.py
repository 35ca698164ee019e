# SPDX-License-Identifier: Apache-2.0
"""What a search strives for, in absolute numbers, and which of its candidates deserve full training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rarefy.budget import Budget
from rarefy.task import Metric

C = TypeVar("C")
MARGIN = 0.03  # of the size that training may add to what a quick trial was coded in
LENIENCE = 0.02  # of the metric that full training may bring back


@dataclass(frozen=True)
class Outcome:
    """What came out of a candidate.

    Attributes:
        size: bytes of the stored file.
        metric: on the validation data.
    """

    size: float
    metric: float


@dataclass(frozen=True)
class Goal:
    """A budget's limits on size and metric, made absolute.

    Attributes:
        size: largest file in bytes, or None.
        drop: largest loss of the metric, or None.
        weights: bytes of the plain weights.
        baseline: the metric of the network as it came.
        metric: for its direction.
        smallest: whether the size is minimised; else the metric is made as good as possible.
    """

    size: float | None
    drop: float | None
    weights: int
    baseline: float
    metric: Metric
    smallest: bool

    @classmethod
    def of(cls, budget: Budget, weights: int, baseline: float, metric: Metric) -> "Goal":
        """The goal that a budget sets for a network."""
        size = budget.limit("size", weights)
        alone = size is None and budget.metric_drop is not None
        return cls(size, budget.metric_drop, weights, baseline, metric, alone)

    def share_without(self, overhead: int) -> float | None:
        """What is left for coded weights, as a share of the plain ones; None without a limit."""
        if self.size is None:
            return None
        return max(self.size * (1 - MARGIN) - overhead, 0.0) / self.weights

    def lost(self, outcome: Outcome) -> float:
        """How much worse the metric is than the baseline's."""
        return self.metric.drop(self.baseline, outcome.metric)

    def score(self, outcome: Outcome) -> float:
        """What is maximised."""
        return -outcome.size / self.weights if self.smallest else -self.lost(outcome)

    def over(self, outcome: Outcome, margin: float = 0.0) -> float:
        """By what share the file is too large; 0 or less is within the limit."""
        if self.size is None:
            return 0.0
        return outcome.size / (self.size * (1 - margin)) - 1

    def missing(self, outcome: Outcome, lenience: float = 0.0) -> float:
        """By what share of the baseline the metric is too bad; 0 or less is within the limit."""
        if self.drop is None:
            return 0.0
        return (self.lost(outcome) - self.drop) / max(abs(self.baseline), 1e-12) - lenience

    def excess(self, outcome: Outcome) -> float:
        """By how much the limits are missed together; 0 if they hold."""
        return max(self.over(outcome), 0.0) + max(self.missing(outcome), 0.0)

    def quick_excess(self, outcome: Outcome) -> float:
        """The same for a quick trial: its size is final but for a margin, its metric will recover."""
        if self.size is not None:
            return self.over(outcome, MARGIN)
        return self.missing(outcome, LENIENCE)

    def finalists(self, tried: Sequence[tuple[C, Outcome]], number: int) -> list[C]:
        """The candidates that deserve full training, most promising first.

        Of those within the quick limits (all of them if none is, the nearest first) the best by score;
        where the size is minimised, each further one has a better metric than those before, and the last
        is one that met the limit without full training, if there is one.
        """
        order = sorted(
            tried,
            key=lambda pair: (
                max(self.quick_excess(pair[1]), 0.0),
                -self.score(pair[1]),
                self.lost(pair[1]) if self.smallest else pair[1].size,
            ),
        )
        chosen: list[tuple[C, Outcome]] = []
        for candidate, outcome in order:
            better = all(self.lost(outcome) < self.lost(other) for _, other in chosen)
            if (better or not self.smallest) and all(candidate != c for c, _ in chosen):
                chosen.append((candidate, outcome))
        safe = [pair for pair in chosen if self.excess(pair[1]) <= 0]
        if self.smallest and safe and safe[0] not in chosen[:number]:
            chosen = [*chosen[: number - 1], safe[0]]
        return [candidate for candidate, _ in chosen[:number]]
