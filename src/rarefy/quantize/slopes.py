# SPDX-License-Identifier: Apache-2.0
"""How many bits weights take at a slope, and the slope at which all of them together take a budget."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rarefy.quantize.priced_rounding import LARGEST, prices_of

STEPS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
"""Steps, in standard deviations of a weight, at which its rate is tried."""


@dataclass
class Rate:
    """How many bits a weight takes at a slope: points (log2 of the slope, bits), all times a factor."""

    weights: int
    points: list[tuple[float, float]] = field(default_factory=list)
    factor: float = 1.0

    def bits(self, slope: float) -> float:
        """Between the points linear, from the last one down to nothing within three doublings of the step.

        Before the first one every halving of the step takes a bit more for each weight.
        """
        x, y = zip(*sorted(self.points), strict=True)
        finer = max(x[0] - slope, 0.0) / 2 * self.weights
        x, y = (*x, x[-1] + 6), (*y, 0.0)
        return self.factor * (float(np.interp(slope, x, y)) + finer)

    def correct(self, slope: float, bits: float) -> None:
        """Scales the bits at all slopes so that they are `bits` at one where that was measured."""
        expected = self.bits(slope)
        if expected > 0:
            self.factor *= bits / expected


def tried_rate(
    W: Tensor, some: int, unit: float, coded: Callable[[Tensor, Tensor], Tensor]
) -> Rate:
    """The bits of a weight at several slopes, from those of a part of it.

    Args:
        W: the weight.
        some: entries of the part.
        unit: the step at slope 1.
        coded: (steps, slopes) -> integers of the part for each of them.
    """
    rate, least = Rate(W.numel()), max(float(W.abs().max()) / LARGEST, 1e-30)
    steps = torch.tensor([max(relative * float(W.std()), least) for relative in STEPS])
    slopes = (steps.double() / unit) ** 2
    for slope, codes in zip(slopes.tolist(), coded(steps, slopes), strict=True):
        bits = float(prices_of(codes)[(codes + LARGEST).long()].sum())
        rate.points.append((float(np.log2(slope)), bits * W.numel() / some))
    return rate


def slope_bits(rates: dict[str, Rate], slope: float) -> float:
    """Bits of all weights at a slope, given by its log2."""
    return sum(rate.bits(slope) for rate in rates.values())


def slope_for(rates: dict[str, Rate], target: float) -> float:
    """log2 of the slope at which all weights together take `target` bits, by bisection."""
    ends = [x for rate in rates.values() for x, _ in rate.points]
    low, high = min(ends) - 10, max(ends) + 6  # bits fall as the slope rises
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope_bits(rates, middle) > target else (low, middle)
    return (low + high) / 2


def exponent_of(step: float) -> float:
    """log2 of a step, as float32 keeps it."""
    return float(torch.tensor(step).log2())


def step_of(exponent: float) -> float:
    """The step of an exponent, to the last bit as `LearnedGrid` finds it."""
    return float(torch.tensor(exponent).exp2())
