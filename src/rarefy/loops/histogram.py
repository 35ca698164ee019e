# SPDX-License-Identifier: Apache-2.0
"""A histogram whose range grows with the data and which merges without error."""

import math
from typing import Self

import torch
from torch import Tensor

from rarefy.errors import ModelError

FINEST = 40  # a bin is never narrower than the largest magnitude / 2^40
LOWEST = -900  # the least exponent, so that powers of two stay within float64


class Histogram:
    """Counts in bins [k · 2^e, (k + 1) · 2^e) for consecutive integers k.

    The exponent e is the least one with which all values so far fit into the bins, so it depends on the
    lowest and the highest value alone. When it grows, bins are joined in pairs, which loses nothing that
    the wider bins could tell. The counts are therefore the same for any order of the data and any split
    into parts that are merged.

    Args:
        bins: at most this many; 2 or more.

    Attributes:
        exponent: e.
        first: k of the first bin.
        counts: (bins in use,) int64.

    Examples:
        >>> h = Histogram(4)
        >>> h.update(torch.tensor([0.5, 1.5, 1.75]))
        >>> h.edges().tolist(), h.counts.tolist()
        ([0.5, 1.0, 1.5, 2.0], [1, 0, 2])
    """

    def __init__(self, bins: int = 2048) -> None:
        if bins < 2:
            raise ModelError(f"a histogram needs 2 bins or more, not {bins}")
        self.bins, self.exponent, self.first = bins, 0, 0
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.low, self.high = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        """Takes the values of a tensor in.

        Raises:
            ModelError: a value is not finite.
        """
        values = x.detach().flatten().double()
        if not values.numel():
            return
        low, high = (float(v) for v in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ModelError("an activation is NaN or infinite, so it has no histogram")
        self.widen(low, high)
        # scaling by a power of two is exact
        bins = torch.floor(values * math.ldexp(1.0, -self.exponent)).long() - self.first
        self.counts += torch.bincount(bins, minlength=len(self.counts)).to(self.counts.device)

    def widen(self, low: float, high: float) -> None:
        """Makes room for a range."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        exponent = least_exponent(self.low, self.high, self.bins)
        first, last = (math.floor(math.ldexp(v, -exponent)) for v in (self.low, self.high))
        counts = torch.zeros(last - first + 1, dtype=torch.int64)
        if len(self.counts):
            counts.index_add_(0, self.places(exponent) - first, self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts

    def merge(self, other: Self) -> Self:
        """Adds what another one with as many bins has seen.

        Raises:
            ModelError: the numbers of bins differ.
        """
        if self.bins != other.bins:
            raise ModelError(f"histograms of {self.bins} and {other.bins} bins can't be merged")
        if len(other.counts):
            self.widen(other.low, other.high)
            self.counts.index_add_(0, other.places(self.exponent) - self.first, other.counts)
        return self

    def places(self, exponent: int) -> Tensor:
        """For each bin the number of the bin of width 2^exponent, not narrower, that holds it."""
        own = torch.arange(self.first, self.first + len(self.counts))
        return own >> min(exponent - self.exponent, 63)

    def edges(self) -> Tensor:
        """(bins in use + 1,) ends of the bins in float64."""
        places = torch.arange(self.first, self.first + len(self.counts) + 1, dtype=torch.float64)
        return places * math.ldexp(1.0, self.exponent)

    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values lie, to within one bin; in [lowest, highest].

        Raises:
            ModelError: nothing was seen.
        """
        if not len(self.counts):
            raise ModelError("no value was seen: the layer was never run on the calibration data")
        wanted = min(max(share, 0.0), 1.0) * self.total()
        upto = self.counts.cumsum(0)
        place = min(int(torch.searchsorted(upto, wanted)), len(self.counts) - 1)
        before, inside = int(upto[place] - self.counts[place]), max(int(self.counts[place]), 1)
        left, right = self.edges()[place : place + 2].tolist()
        value = left + (right - left) * (wanted - before) / inside
        return min(max(value, self.low), self.high)


def least_exponent(low: float, high: float, bins: int) -> int:
    """The least e with which [low, high] falls into at most `bins` cells of width 2^e."""
    largest = max(abs(low), abs(high))
    floor = max(math.frexp(largest)[1] - FINEST, LOWEST) if largest else LOWEST
    spread = (high - low) / bins
    exponent = max(floor, math.frexp(spread)[1] - 1 if spread > 0 else floor)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent
