# SPDX-License-Identifier: Apache-2.0
"""One option for every layer so that the costs together keep a limit and the errors stay small."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Options: TypeAlias = Sequence[tuple[float, float]]

BINS = 4096


def greedy(layers: Sequence[Options], limit: float) -> list[int] | None:
    """Takes the step of least error for its saving, again and again, from the first option everywhere.

    When the limit is met, what is left of it is spent where it lowers the error most.

    Args:
        layers: for every layer its options (cost, error); the first is the layer as it is.
        limit: of the sum of costs.

    Returns:
        The option of every layer; None if even the cheapest ones exceed the limit.
    """
    if sum(min(cost for cost, _ in options) for options in layers) > limit:
        return None
    chosen = [0] * len(layers)
    total = sum(options[0][0] for options in layers)
    while total > limit:
        steps = [
            ((error - options[at][1]) / (options[at][0] - cost), number, to)
            for number, (options, at) in enumerate(zip(layers, chosen, strict=True))
            for to, (cost, error) in enumerate(options)
            if cost < options[at][0]
        ]
        _, number, to = min(steps)
        total += layers[number][to][0] - layers[number][chosen[number]][0]
        chosen[number] = to
    return spend(layers, chosen, limit - total)


def spend(layers: Sequence[Options], chosen: list[int], left: float) -> list[int]:
    """Uses what is left of the limit for dearer options that lower the error, the best bargain first."""
    while True:
        steps = [
            ((options[at][1] - error) / max(cost - options[at][0], 1e-30), number, to)
            for number, (options, at) in enumerate(zip(layers, chosen, strict=True))
            for to, (cost, error) in enumerate(options)
            if cost - options[at][0] <= left and error < options[at][1]
        ]
        if not steps:
            return chosen
        _, number, to = max(steps)
        left -= layers[number][to][0] - layers[number][chosen[number]][0]
        chosen[number] = to


def exact(layers: Sequence[Options], limit: float, bins: int = BINS) -> list[int] | None:
    """The least sum of errors under a limit, by dynamic programming over the costs.

    Costs are counted in parts of the limit, rounded up: what is chosen keeps the limit, and is the best
    of all choices if costs are whole parts. Where rounding makes the problem impossible, `greedy` answers.

    Args:
        layers: as for `greedy`.
        limit: of the sum of costs.
        bins: number of parts.
    """
    part = limit / bins
    best = np.full(bins + 1, np.inf)
    best[0] = 0.0
    took: list[np.ndarray] = []
    for options in layers:
        found = np.full(bins + 1, np.inf)
        which = np.full(bins + 1, -1, dtype=np.int64)
        for number, (cost, error) in enumerate(options):
            width = int(np.ceil(cost / part - 1e-9))
            if width > bins:
                continue
            reached = best[: bins + 1 - width] + error
            better = reached < found[width:]
            found[width:][better] = reached[better]
            which[width:][better] = number
        best = found
        took.append(which)
    if not np.isfinite(best).any():
        return greedy(layers, limit)
    at, chosen = int(np.argmin(best)), []
    for options, which in zip(reversed(layers), reversed(took), strict=True):
        number = int(which[at])
        chosen.append(number)
        at -= int(np.ceil(options[number][0] / part - 1e-9))
    return chosen[::-1]
