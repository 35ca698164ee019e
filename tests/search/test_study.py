# SPDX-License-Identifier: Apache-2.0
"""A study keeps to its constraint, and proposes the same under the same seed."""

from typing import Any

from rarefy.search.study import constrained_study, run_study, silence


def searched(seed: int, trials: int = 40) -> list[tuple[float, float]]:
    """x and its score, of a search for the largest x with x at most 0.3."""
    found: list[tuple[float, float]] = []

    def evaluate(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        found.append((x, x - 0.3))
        return x, x - 0.3

    with silence():
        run_study(constrained_study(seed, 10), trials, evaluate)
    return found


def test_the_same_seed_proposes_the_same() -> None:
    assert searched(3) == searched(3)
    assert searched(3)[0] != searched(4)[0]


def test_the_constraint_is_learned() -> None:
    late = sorted(abs(excess) for _, excess in searched(0)[20:])
    assert late[len(late) // 2] < 0.1, "half of all draws by chance lie 0.25 from the limit or more"
    assert 0.25 < max(x for x, excess in searched(0) if excess <= 0) <= 0.3
