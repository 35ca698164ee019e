# SPDX-License-Identifier: Apache-2.0
"""Statistics of streams of tensors that never hold the stream and can be merged.

Each has ``update(x)`` and ``merge(other)``; merging the statistics of two parts gives the statistics of the
whole, so parts may be gathered in any order, on any machine.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from rarefy.errors import ModelError


class Statistic(Protocol):
    """What `rarefy.loops.gather.gather` feeds."""

    def update(self, x: Tensor) -> None:
        """Takes one tensor in."""
        ...


class SecondMoment:
    """X^T X over rows X (N, in), or one for each group over (groups, N, in).

    Args:
        dtype: in which products are formed and summed; float64 unless memory or time forbid it.

    Attributes:
        total: (in, in) or (groups, in, in) sum of the products; None before the first row.
        count: rows so far.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.total: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Takes rows (N, in) or (groups, N, in) in."""
        rows = x.detach().to(self.dtype)
        product = rows.mT @ rows
        self.total = product if self.total is None else self.total.add_(product)
        self.count += rows.shape[-2]

    def merge(self, other: Self) -> Self:
        """Adds what another one has seen."""
        if other.total is not None:
            self.total = other.total.clone() if self.total is None else self.total.add_(other.total)
        self.count += other.count
        return self

    def mean(self) -> Tensor:
        """X^T X / N.

        Raises:
            ModelError: nothing was seen.
        """
        if self.total is None or not self.count:
            raise ModelError("no row was seen: the layer was never run on the calibration data")
        return self.total / self.count


class Range:
    """The lowest and the highest value, of the whole or of each channel.

    Args:
        axis: of the channels; None for one range.

    Attributes:
        low, high: () or (channels,); +inf and -inf before the first value.
    """

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self.low = torch.tensor(torch.inf)
        self.high = torch.tensor(-torch.inf)

    def update(self, x: Tensor) -> None:
        """Takes a tensor of any shape in."""
        x = x.detach()
        if not x.numel():
            return
        if self.axis is None:
            low, high = torch.aminmax(x)
        else:
            low, high = torch.aminmax(x.movedim(self.axis, 0).flatten(1), dim=1)
        self.widen(low, high)

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Includes a range."""
        self.low = torch.minimum(self.low.to(low), low)
        self.high = torch.maximum(self.high.to(high), high)

    def merge(self, other: Self) -> Self:
        """Includes what another one has seen."""
        self.widen(other.low, other.high)
        return self


class ChannelMoments:
    """Mean and variance of each channel in float64.

    Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979,
    equations 2.1: nothing cancels, however far the mean is from zero.

    Args:
        axis: of the channels.

    Attributes:
        count: values per channel so far.
        mean: (channels,).
        deviations: (channels,) sum of squared differences from the mean.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis, self.count = axis, 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.deviations = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Takes a tensor with channels on the axis in."""
        values = x.detach().movedim(self.axis, 0).flatten(1).double()
        if values.shape[1]:
            mean = values.mean(1)
            self.include(values.shape[1], mean, (values - mean.unsqueeze(1)).square().sum(1))

    def include(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Adds the moments of a part."""
        total = self.count + count
        if not total:
            return
        apart = mean - self.mean.to(mean.device)
        between = apart.square() * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + apart * (count / total)
        self.deviations = self.deviations.to(mean.device) + deviations + between
        self.count = total

    def merge(self, other: Self) -> Self:
        """Adds what another one has seen."""
        self.include(other.count, other.mean, other.deviations)
        return self

    def variance(self, correction: int = 0) -> Tensor:
        """(channels,) mean squared difference from the mean; `correction` 1 is the unbiased estimate."""
        return self.deviations / max(self.count - correction, 1)


class Covariance:
    """Covariances between the channels in float64, merged as `ChannelMoments` are.

    Args:
        axis: of the channels.

    Attributes:
        count: values per channel so far.
        mean: (channels,).
        products: (channels, channels) sum of products of differences from the means.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis, self.count = axis, 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.products = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Takes a tensor with channels on the axis in."""
        values = x.detach().movedim(self.axis, 0).flatten(1).double()
        if values.shape[1]:
            mean = values.mean(1)
            apart = values - mean.unsqueeze(1)
            self.include(values.shape[1], mean, apart @ apart.mT)

    def include(self, count: int, mean: Tensor, products: Tensor) -> None:
        """Adds the moments of a part."""
        total = self.count + count
        if not total:
            return
        apart = mean - self.mean.to(mean.device)
        between = torch.outer(apart, apart) * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + apart * (count / total)
        self.products = self.products.to(mean.device) + products + between
        self.count = total

    def merge(self, other: Self) -> Self:
        """Adds what another one has seen."""
        self.include(other.count, other.mean, other.products)
        return self

    def covariance(self) -> Tensor:
        """(channels, channels) mean products of differences from the means."""
        return self.products / max(self.count, 1)
