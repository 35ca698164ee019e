# SPDX-License-Identifier: Apache-2.0
"""How far two tensors that should be equal are apart, over many batches."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Difference:
    """Differences between pairs of tensors, gathered batch by batch."""

    low: float = float("inf")
    high: float = float("-inf")
    largest: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> int:
        """Takes in one pair and returns which example (place on the first axis) differs most in it.

        A NaN on one side alone, or another shape, is an infinite difference.
        """
        if ours.shape != theirs.shape:
            self.largest = float("inf")
            return 0
        ours, theirs = ours.double(), theirs.double()
        finite = ours[ours.isfinite()]
        if finite.numel():
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        gap = torch.where(same, 0.0, (ours - theirs).abs()).nan_to_num(nan=float("inf"))
        if not gap.numel():
            return 0
        self.largest = max(self.largest, float(gap.max()))
        return int(gap.flatten(1).amax(1).argmax()) if gap.dim() > 1 else int(gap.argmax())

    @property
    def relative(self) -> float:
        """The largest difference over the range of the reference."""
        reach = max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0
        # the outputs of a network that gives a constant have no range, so their size must do
        spread = max(self.high - self.low, 1e-3 * reach, 1e-30)
        return self.largest / spread if self.largest else 0.0
