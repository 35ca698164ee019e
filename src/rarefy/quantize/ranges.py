# SPDX-License-Identifier: Apache-2.0
"""From a stream of tensors to the range that a quantiser should cover.

Ways to choose it: minimum and maximum; percentiles; least squared error of rounding and clipping together;
least divergence of the quantised distribution (S. Migacz: 8-bit Inference with TensorRT, GTC 2017).
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rarefy.forms.grid import Grid, grid_for_range
from rarefy.loops.histogram import Histogram

Choice: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
BINS = 4096  # of the histograms that ranges are chosen from


def centres_of(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """Centres, kept within what was seen, and counts of the bins that hold something, float64."""
    held = histogram.counts.nonzero().flatten()
    edges = histogram.edges()
    centres = (edges[held] + edges[held + 1]) / 2
    return centres.clamp(histogram.low, histogram.high), histogram.counts[held].double()


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The values below and above which (100 - percentile) / 2 percent of all lie, each."""
    tail = (1 - percentile / 100) / 2
    return histogram.quantile(tail), histogram.quantile(1 - tail)


def rounding_error(histogram: Histogram, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """Squared error of quantising the histogram on the ranges [low, high], (m,) each; returns (m,)."""
    x, counts = centres_of(histogram)
    scale, zero_point = grid_for_range(low, high, grid)
    s, z = scale.double().unsqueeze(1), zero_point.double().unsqueeze(1)
    rounded = ((x / s).round() + z).clamp(grid.low, grid.high).sub_(z).mul_(s)
    return rounded.sub_(x).square_() @ counts


def mse_range(histogram: Histogram, grid: Grid, steps: int = 100) -> tuple[float, float]:
    """The range of least squared error: both ends shrunk together, then each end by itself."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shares = torch.arange(1, steps + 1, dtype=torch.float64).flip(0) / steps
    ends = [shares * low, shares * high]

    def best(lows: Tensor, highs: Tensor) -> tuple[float, float]:
        at = int(rounding_error(histogram, lows, highs, grid).argmin())
        return float(lows[at]), float(highs[at])

    low, high = best(*ends)
    if low < 0 < high and not grid.symmetric:
        low, high = best(ends[0], torch.full_like(ends[1], high))
        low, high = best(torch.full_like(ends[0], low), ends[1])
    return low, high


def entropy_range(histogram: Histogram, grid: Grid, steps: int = 64) -> tuple[float, float]:
    """Clips at the absolute value t whose quantised distribution diverges least from the clipped one."""
    centres, counts = centres_of(histogram)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    top = max(-low, high)
    levels = (grid.high - grid.low + 1) // (2 if low < 0 else 1)
    if top == 0:
        return low, high
    spread = torch.zeros(2048, dtype=torch.float64)
    place = (centres.abs() / top * 2048).long().clamp_(max=2047)
    spread.index_add_(0, place, counts)
    spread[0] = spread[1]  # the peak at zero is coded exactly and would outweigh everything else
    ends = torch.linspace(min(levels, 2048), 2048, steps).long()
    limit = top * float(ends[int(clipped_divergences(spread, ends, levels).argmin())]) / 2048
    return max(low, -limit), min(high, limit)


def clipped_divergences(spread: Tensor, ends: Tensor, levels: int) -> Tensor:
    """For every end the KL divergence of the first bins, the rest put into the last, from means over runs.

    Args:
        spread: (bins,) counts, float64.
        ends: (m,) how many bins are kept.
        levels: runs that the kept bins are cut into.

    Returns:
        (m,); infinite where nothing is kept.
    """
    whole, seen, self_information = (
        nn.functional.pad(x.cumsum(0), (1, 0))
        for x in (spread, (spread > 0).double(), torch.xlogy(spread, spread))
    )
    kept, last = whole[ends], spread[ends - 1]
    tail = whole[-1] - kept
    # a run begins with the first bin whose place times levels reaches its number times bins
    starts = -(-torch.arange(levels + 1) * ends.unsqueeze(1) // levels)
    mass, alive = whole[starts].diff(dim=1), seen[starts].diff(dim=1)
    q = mass / (alive.clamp(min=1) * kept.unsqueeze(1)).clamp(min=1e-300)
    q = q.clamp(min=1e-12)
    at_end = q.gather(1, ((ends - 1) * levels // ends).unsqueeze(1)).squeeze(1)
    at_end = torch.where(last > 0, at_end, 1e-12)
    crossed = torch.xlogy(mass, q).sum(1) + torch.xlogy(tail, at_end)
    own = self_information[ends] - torch.xlogy(last, last) + torch.xlogy(last + tail, last + tail)
    found = (own - crossed) / whole[-1] - whole[-1].log()
    return torch.where(kept > 0, found, torch.inf)


def choose_range(
    histogram: Histogram, choice: Choice, grid: Grid, percentile: float = 99.99
) -> tuple[float, float]:
    """The range that a quantiser on `grid` should cover."""
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "minmax": lambda: (histogram.low, histogram.high),
        "percentile": lambda: percentile_range(histogram, percentile),
        "entropy": lambda: entropy_range(histogram, grid),
        "mse": lambda: mse_range(histogram, grid),
    }
    return ways[choice]()


def range_candidates(histogram: Histogram, grid: Grid) -> list[tuple[float, float]]:
    """The distinct ranges of all choices, the widest first."""
    ways: tuple[Choice, ...] = ("minmax", "percentile", "mse", "entropy")
    return list(dict.fromkeys(choose_range(histogram, way, grid) for way in ways))
