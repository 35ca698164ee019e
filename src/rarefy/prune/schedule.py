# SPDX-License-Identifier: Apache-2.0
"""How sparsity grows: functions from progress in [0, 1] to the share of zeros.

Every schedule is monotone, begins at `start` and ends at `end` exactly.
"""

from collections.abc import Callable

Schedule = Callable[[float, float, float], float]


def one_shot(progress: float, end: float, start: float = 0.0) -> float:
    """All at once, as soon as there is any progress."""
    return end if progress > 0 else start


def linear(progress: float, end: float, start: float = 0.0) -> float:
    """The same number of weights in every round."""
    return start + (end - start) * progress if progress < 1 else end


def geometric(progress: float, end: float, start: float = 0.0) -> float:
    """The same share of the remaining weights in every round: the kept share is d0^(1-p) d1^p.

    From a dense network to sparsity s in n rounds this is s_k = 1 - (1 - s)^(k/n). Frankle, Carbin: The
    Lottery Ticket Hypothesis, 2019, arXiv 1803.03635, section 2.
    """
    if progress >= 1:
        return end
    return start if progress <= 0 else 1 - (1 - start) ** (1 - progress) * (1 - end) ** progress


def cubic(progress: float, end: float, start: float = 0.0) -> float:
    """Fast while there is much to spare, slow at the end: s_f + (s_i - s_f) (1 - p)³.

    Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression, 2017,
    arXiv 1710.01878, equation 1.
    """
    if progress <= 0:
        return start
    return end + (start - end) * (1 - progress) ** 3 if progress < 1 else end


SCHEDULES: dict[str, Schedule] = {
    "one-shot": one_shot,
    "linear": linear,
    "geometric": geometric,
    "cubic": cubic,
}
