# SPDX-License-Identifier: Apache-2.0
"""Mean and spread of every channel of every value in a network, followed through its calls without data.

Nagel et al.: Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, arXiv 1906.04721,
section 4.2 and appendix C: behind a folded batch norm a channel is normal with mean beta and deviation
|gamma|; what a clip leaves of a normal variable is known in closed form. Where no norm was, the moments are
computed from those of the inputs, channels taken as independent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.graph.calls import Call
from rarefy.loops.matrix import groups_of, matrix_of
from rarefy.quantize.flow import Flow, Value
from rarefy.quantize.kernels import kind
from rarefy.select import Layer

ROOT = 2.0**0.5


@dataclass(frozen=True)
class Moments:
    """What is known of a value.

    Attributes:
        mean, variance: (channels,) float64.
        low, high: ends that no clip lets values pass.
    """

    mean: Tensor
    variance: Tensor
    low: float = float("-inf")
    high: float = float("inf")

    def range(self, deviations: float) -> tuple[float, float]:
        """The lowest mean - n·deviation and the highest mean + n·deviation, within the ends."""
        reach = deviations * self.variance.sqrt()
        low, high = float((self.mean - reach).min()), float((self.mean + reach).max())
        return max(min(low, 0.0), self.low), min(max(high, 0.0), self.high)


def density(x: Tensor) -> Tensor:
    """Of the standard normal distribution."""
    return torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5


def share_below(x: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return 0.5 * (1 + torch.erf(x / ROOT))


def clipped_normal(
    mean: Tensor, variance: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of clip(X, low, high) for normal X.

    Args:
        mean, variance: (channels,) of X, float64.
        low, high: ends; infinite ones do not clip.
    """
    sigma = variance.clamp(min=1e-24).sqrt()
    a, b = (low - mean) / sigma, (high - mean) / sigma
    at_a, at_b = density(a), density(b)
    below, above = share_below(a), 1 - share_below(b)
    inside = 1 - below - above
    first = mean * inside + sigma * (at_a - at_b)
    edge_a = torch.where(torch.isfinite(a), a * at_a, 0.0) if low > -torch.inf else 0.0
    edge_b = torch.where(torch.isfinite(b), b * at_b, 0.0) if high < torch.inf else 0.0
    second = (mean.square() + variance) * inside + 2 * mean * sigma * (at_a - at_b)
    second = second + variance * (edge_a - edge_b)
    for end, share in ((low, below), (high, above)):
        if abs(end) < torch.inf:
            first, second = first + end * share, second + end * end * share
    return first, (second - first.square()).clamp(min=0.0)


def through_layer(layer: nn.Module, found: Moments) -> Moments:
    """W·mean + b and W²·variance; a linear layer behind a flattening reads each channel many times."""
    W = matrix_of(Layer("", layer)).double()
    groups = groups_of(layer)
    W = W if W.dim() == 3 else W.unsqueeze(0)  # (G, out/G, in/G·k)
    mean, variance = (spread_over(v, groups, W.shape[2]) for v in (found.mean, found.variance))
    bias: Any = getattr(layer, "bias", None)
    first = (W @ mean.unsqueeze(2)).flatten()
    shift = 0.0 if bias is None else bias.detach().double()
    return Moments(first + shift, (W.square() @ variance.unsqueeze(2)).flatten())


def spread_over(values: Tensor, groups: int, width: int) -> Tensor:
    """(channels,) values over the columns of a weight's matrix, (groups, width)."""
    return values.view(groups, -1).repeat_interleave(width * groups // len(values), 1)


def clip_of(item: Call) -> tuple[float, float] | None:
    """The ends of a clip, or None if the call is none."""
    numbers = [float(a) for a in item.arguments if type(a) in (int, float)]
    match item.function:
        case "relu":
            return 0.0, float("inf")
        case "relu6":
            return 0.0, 6.0
        case "hardtanh" | "clamp" | "clip" if len(numbers) >= 2:
            return numbers[0], numbers[1]
        case "hardtanh":
            return -1.0, 1.0
        case _:
            return None


def clipped(found: Moments, ends: tuple[float, float]) -> Moments:
    """The moments behind a clip."""
    mean, variance = clipped_normal(found.mean, found.variance, *ends)
    return Moments(mean, variance, max(ends[0], found.low), min(ends[1], found.high))


def summed(parts: list[Moments], item: Call) -> Moments:
    """The moments of a sum of independent values."""
    first, second = parts
    return Moments(
        first.mean + second.mean, first.variance + second.variance,
        first.low + second.low, first.high + second.high,
    )  # fmt: skip


def joined(parts: list[Moments], item: Call) -> Moments:
    """The moments of what is put behind one another along the channels."""
    return Moments(
        torch.cat([part.mean for part in parts]), torch.cat([part.variance for part in parts]),
        min(part.low for part in parts), max(part.high for part in parts),
    )  # fmt: skip


def same(parts: list[Moments], item: Call) -> Moments:
    """What pooling, moving and copying leave: the moments that were there, an upper bound of the spread."""
    return parts[0]


RULES: dict[str, Callable[[list[Moments], Call], Moments]] = {
    "add": summed, "cat": joined,
    **dict.fromkeys(
        ("max_pool", "avg_pool", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
         "mean", "flatten", "view", "reshape", "pad", "getitem", "squeeze", "unsqueeze", "interpolate"),
        same,
    ),
}  # fmt: skip


def moments_of(
    model: nn.Module,
    flow: Flow,
    statistics: Mapping[str, Moments],
    inputs: Mapping[str, Moments],
) -> dict[Value, Moments]:
    """The moments of every value that can be followed; behind an operator that nobody knows there are none.

    Args:
        model: batch norms folded.
        flow: of its values.
        statistics: of what layers give whose norms were folded, by path.
        inputs: of the network's inputs, by site (``input#0``).
    """
    found: dict[Value, Moments] = {}
    for value in flow.values:
        item = value.maker
        if item is None:
            if value.site is not None and value.site in inputs:
                found[value] = inputs[value.site]
            continue
        read = [v for v in flow.read[item.site] if v is not None]
        parts = [found[v] for v in read if v in found]
        weighted = kind(item) == "linear" or item.function.startswith("conv")
        if weighted and item.module in statistics:
            found[value] = statistics[item.module]
        elif not parts or len(parts) < len(read):
            continue
        elif kind(item) in ("conv", "linear"):
            found[value] = through_layer(model.get_submodule(item.module), parts[0])
        elif (ends := clip_of(item)) is not None:
            found[value] = clipped(parts[0], ends)
        elif kind(item) in RULES and len(parts) == len(flow.read[item.site]):
            found[value] = RULES[kind(item)](parts, item)
    return found
