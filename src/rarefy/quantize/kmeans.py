# SPDX-License-Identifier: Apache-2.0
"""k-means on the line: the exact optimum, Lloyd's iteration from several starts, and coding by levels.

Exact: H. Wang, M. Song: Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming,
The R Journal 3(2), 2011; starts: Han, Mao, Dally: Deep Compression, 2016, arXiv 1510.00149, section 3.2.
Everything works on sorted values with prefix sums, so the cost of a cluster is known in O(1).
"""

from typing import Literal, TypeAlias

import numpy as np

from rarefy.quantize.line import LARGE, PIECE, Array, Line, line_of

Start: TypeAlias = Literal["linear", "random", "density", "exact"]
GROUPS = 4096  # values that the dynamic programme distinguishes; more are grouped first


def optimal_levels(values: Array, k: int) -> Array:
    """The k levels (or as many as there are distinct values) of least squared error, ascending.

    Exact for up to 4,096 distinct values; of more, neighbours are grouped before the dynamic programme and
    the result is polished by Lloyd's iteration on all of them.

    Args:
        values: any shape, finite.
        k: at least 1.
    """
    line, (x, counts) = line_of(values), np.unique(values, return_counts=True)
    if len(x) <= k:
        return np.asarray(x, np.float64)
    if len(x) <= GROUPS:
        distinct = line_of(x, counts)
        return distinct.means(best_ends(distinct, k)) + distinct.mean
    edges = group_edges(line)
    grouped = Line(line.x[edges[:-1]], line.mean, *(s[edges] for s in sums_of(line)))
    start = grouped.means(best_ends(grouped, k)) + line.mean
    return lloyd(line, start)[0]


def sums_of(line: Line) -> tuple[Array, Array, Array]:
    """The three prefix sums."""
    return line.count, line.total, line.square


def group_edges(line: Line) -> Array:
    """Where neighbours are grouped: half of the edges equally wide, half equally populated."""
    n, half = len(line.x), GROUPS // 2
    wide = np.searchsorted(line.x, np.linspace(line.x[0], line.x[-1], half)[1:-1])
    return np.unique(np.concatenate([[0, n], wide, np.linspace(0, n, half).astype(np.int64)]))


def best_ends(line: Line, k: int) -> Array:
    """Ends (k + 1,) of the k clusters of least cost; O(k n log n) by divide and conquer.

    The best start of the last cluster moves right as its end does, so it is sought between those of
    the neighbours that are known: all ends of one depth of the recursion at once.
    """
    n = len(line.count) - 1
    ends = np.arange(n + 1)
    best = np.full(n + 1, np.inf)
    best[1:] = line.cost(np.zeros(n, np.int64), ends[1:])
    starts = np.zeros((k, n + 1), np.int32)
    for m in range(1, k):
        best, starts[m] = one_more(line, best, m)
    path = [n]
    for m in range(k - 1, 0, -1):
        path.append(int(starts[m, path[-1]]))
    return np.array([0, *reversed(path)])


def one_more(line: Line, before: Array, m: int) -> tuple[Array, Array]:
    """From the least costs with m clusters those with m + 1, and where their last cluster starts."""
    n = len(before) - 1
    best, starts = np.full(n + 1, np.inf), np.full(n + 1, m, np.int64)
    step = 1 << n.bit_length()
    while step > 1:
        half = step // 2
        i = np.arange(half, n + 1, step)
        low = np.maximum(starts[i - half], m)
        above = np.minimum(i + half, n)
        # an end beyond the last has not been solved unless it is a multiple of the wider step
        high = np.where(i + half <= n, starts[above], n)
        keep = i > m
        i, low, high = i[keep], low[keep], np.minimum(high, i - 1)[keep]
        high = np.maximum(high, low)
        if len(i):
            best[i], starts[i] = least(line, before, i, low, high)
        step = half
    return best, starts


def least(line: Line, before: Array, i: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """For every end i the least before[j] + cost(j, i) over low <= j <= high, and the smallest such j."""
    sizes = high - low + 1
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    j = np.arange(sizes.sum()) + np.repeat(low - first, sizes)
    value = before[j] + line.cost(j, np.repeat(i, sizes))
    lowest = np.minimum.reduceat(value, first)
    hits = np.flatnonzero(value == np.repeat(lowest, sizes))
    return lowest, j[hits[np.searchsorted(hits, first)]]


def start_levels(line: Line, k: int, start: Start, seed: int = 0) -> Array:
    """k ascending levels to begin with.

    ``"linear"``: equally spaced between the ends; ``"random"``: drawn from the values; ``"density"``:
    equally spaced in the distribution function; ``"exact"``: the optimum.
    """
    x, n = line.x, len(line.x)
    match start:
        case "linear":
            levels = np.linspace(x[0], x[-1], k)
        case "random":
            levels = np.sort(np.random.default_rng(seed).choice(x, min(k, n), replace=False))
        case "density":
            levels = x[((np.arange(k) + 0.5) / k * n).astype(np.int64)]
        case "exact":
            return optimal_levels(x, k) + line.mean
    return np.unique(levels) + line.mean


def lloyd(line: Line, levels: Array, iterations: int = 300) -> tuple[Array, Array]:
    """Alternates nearest level and mean until no value changes its level; O(k log n) an iteration.

    Levels that no value is nearest to stay where they are.

    Args:
        line: the values.
        levels: (k,) ascending.
        iterations: at most so many.

    Returns:
        Levels (k,), and the squared error before each iteration and at the end: it never rises.
    """
    levels = np.asarray(levels, np.float64) - line.mean
    errors: list[float] = []
    last = None
    for _ in range(iterations + 1):
        ends = boundaries(line.x, levels)
        n, s = np.diff(line.count[ends]), np.diff(line.total[ends])
        errors.append(float(line.square[-1] + (levels * (levels * n - 2 * s)).sum()))
        if (last is not None and np.array_equal(ends, last)) or len(errors) > iterations:
            break
        levels = np.where(n > 0, s / np.maximum(n, 1e-300), levels)
        last = ends
    return levels + line.mean, np.maximum(errors, 0.0)


def boundaries(x: Array, levels: Array) -> Array:
    """Ends (k + 1,) of the runs of sorted `x` that are nearest to each ascending level; ties go down."""
    middle = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right")
    return np.concatenate([[0], middle, [len(x)]])


def cluster(values: Array, k: int, start: Start = "exact", seed: int = 0) -> Array:
    """At most k levels for `values` by k-means, ascending, float64; levels without values are left out.

    With no more than k distinct values the levels are these values, so nothing is lost.

    Args:
        values: any shape, finite.
        k: at least 1.
        start: see `start_levels`.
        seed: of the random start.

    Examples:
        >>> cluster(np.array([0.0, 0.1, 1.0, 1.1, 5.0]), 3).round(2).tolist()
        [0.05, 1.05, 5.0]
    """
    if len(np.unique(values.ravel()[:LARGE])) <= k:  # else all of them are more as well
        distinct = np.unique(values)
        if len(distinct) <= k:
            return np.asarray(distinct, np.float64)
    line = line_of(values)
    levels = lloyd(line, start_levels(line, k, start, seed))[0]
    used = np.diff(boundaries(line.x, levels - line.mean)) > 0
    return levels[used]


def nearest_codes(values: Array, levels: Array) -> Array:
    """Index of the nearest of the ascending `levels` for every value; ties go to the lower level."""
    borders, flat = (levels[1:] + levels[:-1]) / 2, values.ravel()
    codes = np.empty(flat.size, np.int32)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE].astype(np.float64)
        codes[start : start + PIECE] = np.searchsorted(borders, piece, side="left")
    return codes.reshape(values.shape)


def codebook_bytes(count: int, levels: int) -> float:
    """Bytes of `count` weights as indices of log2(levels) bits and a table of float32 levels."""
    return count * float(np.log2(levels)) / 8 + 4 * levels
