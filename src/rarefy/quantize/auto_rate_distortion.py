# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion rounding without a rate: as few bits as a bound on the loss allows.

The loss rises as bits fall, but for noise. So rates are halved or raised until one is within the bound and
one is not, then bisected. What does not depend on the rate (gradients, the bits of every layer at every
slope) is found once.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from rarefy.errors import ModelError
from rarefy.loops.heap import kept_blocks
from rarefy.quantize.judged import loss_against
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.quantize.rounded_layers import Copies, Rounded
from rarefy.step import Context

FIRST, LEAST, NEAR = 3.0, 0.1, 1.05
"""Bits a weight that are tried first and at the least; how near each other two rates end, as a ratio."""


@dataclass(frozen=True)
class AutoRateDistortion(RateDistortion):
    """Rounds weights in as few bits as keep the loss within a bound; no training.

    Attributes:
        loss: the most that the metric may lose on validation data; without labels or validation data, the
            share of calibration examples that may get another answer.
        bits: the most that a weight may take on average in the file.
        examples, damping, by_row, trellis, fold, layers, exclude: as for rate-distortion, see
            `rarefy.quantize.rate_distortion.RateDistortion`.

    Examples:
        >>> AutoRateDistortion(loss=0.005).bits
        8.0
    """

    loss: Annotated[float, Field(ge=0, le=1)] = 0.01
    bits: Annotated[float, Field(gt=0, le=9)] = 8.0

    @kept_blocks()
    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Rounds at several rates and keeps the lowest that loses little enough.

        Raises:
            ModelError: too much is lost even at the most bits.
        """
        lose = loss_against(model, context, self.examples)
        begun = self.begun(model, context)
        if begun is None:
            return model
        tried: list[tuple[float, float]] = []
        best: tuple[Rounded, Copies] | None = None
        failed, bits = 0.0, min(FIRST, self.bits)
        while True:
            begun.originals.restore()
            rounded = self.rounded(model, begun, bits)
            tried.append((bits, lose(model)))
            if tried[-1][1] <= self.loss:
                best, reached = (rounded, Copies(begun.all())), bits
            elif bits >= self.bits:
                raise self.too_much(tried[-1][1])
            else:
                failed = bits
            if best is None:
                bits = min(1.5 * bits, self.bits)
            elif reached <= max(NEAR * failed, LEAST):
                break
            else:
                bits = sqrt(failed * reached) if failed else max(reached / 2, LEAST)
        best[1].restore()
        self.dress(model, begun, best[0], context)
        told = ", ".join(f"{rate:.2f} bits lose {lost:.2%}" for rate, lost in sorted(tried))
        context.record["notes"] = [
            f"{reached:.2f} bits a weight keep the loss within {self.loss:.2%}: {told}"
        ]
        return model

    def too_much(self, lost: float) -> ModelError:
        """That no rate is high enough."""
        return ModelError(
            f"auto-rate-distortion can't keep the loss within {self.loss:.2%}: {self.bits:g} bits a weight "
            f"lose {lost:.2%}; allow a larger loss or more bits"
        )
