# SPDX-License-Identifier: Apache-2.0
"""Channels that hold the largest weights become two of half the size, so that a weight's range shrinks.

Zhao, Hu, Dotzel, De Sa, Zhang: Improving Neural Network Quantization without Retraining using Outlier Channel
Splitting, 2019, arXiv 1901.09504. The layer before gives the channel twice; halves are split so that the sum
of the two rounded ones is the rounded whole (section 3.3).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.shadow import forms_of
from rarefy.graph.fold import fold_batch_norms
from rarefy.quantize.chains import Pair, pairs_of_layers
from rarefy.step import Context, OpenFraction, Step
from rarefy.task import move


def halves(w: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """(w - step / 2) / 2 and (w + step / 2) / 2, whose sum is w and whose roundings sum up to that of w.

    Args:
        w: weights.
        step: of the grid on which they will be rounded.
    """
    return (w - step / 2) / 2, (w + step / 2) / 2


def columns_of(layer: nn.Module, channels: int) -> Tensor:
    """A weight as (outputs, channels, rest): a linear layer may read a channel many times."""
    w: Any = layer.weight
    return w.detach().flatten(2) if w.dim() > 2 else w.detach().unflatten(1, (channels, -1))


@torch.no_grad()
def split_channel(first: Any, second: Any, channel: int, step: float) -> None:
    """Doubles an output of the first layer, last behind the others, and halves what reads it."""
    first.weight = nn.Parameter(torch.cat([first.weight, first.weight[channel : channel + 1]]))
    if first.bias is not None:
        first.bias = nn.Parameter(torch.cat([first.bias, first.bias[channel : channel + 1]]))
    count = len(first.weight) - 1
    w = columns_of(second, count).clone()  # (O, C, rest)
    low, high = halves(w[:, channel], step)
    w[:, channel] = low
    w = torch.cat([w, high.unsqueeze(1)], 1)
    shape = second.weight.shape
    second.weight = nn.Parameter(
        w.flatten(1) if len(shape) == 2 else w.view(len(w), -1, *shape[2:])
    )
    set_size(first, "out", count + 1)
    set_size(second, "in", count + 1 if len(shape) > 2 else w.shape[1] * w.shape[2])


def set_size(layer: nn.Module, side: str, size: int) -> None:
    """Tells a layer its new number of inputs or outputs."""
    setattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", size)


def split_pair(model: nn.Module, pair: Pair, ratio: float, bits: int) -> list[int]:
    """Splits the channels with the largest weights one after the other; those that were split."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    count = len(first.weight)  # type: ignore[arg-type]
    chosen: list[int] = []
    for number in range(round(ratio * count)):
        reach = columns_of(second, count + number).abs().amax((0, 2))
        channel = int(reach.argmax())
        step = float(reach.max()) / (2 ** (bits - 1) - 1)
        split_channel(first, second, channel, step)
        chosen.append(channel)
    return chosen


def can_split(model: nn.Module, pair: Pair) -> bool:
    """Whether both layers hold plain weights and no groups."""
    both = [model.get_submodule(path) for path in (pair.first, pair.second)]
    return all(int(getattr(m, "groups", 1)) == 1 and not forms_of(m) for m in both)


@dataclass(frozen=True)
class SplitOutliers(Step):
    """Splits channels between layers that stand one behind the other; the function stays.

    Helps where one scale serves a whole weight or bits are few; costs `ratio` more channels.

    Attributes:
        ratio: share of the channels between two layers that are split.
        bits: of the grid that will follow, so that halves round to the same sum.
    """

    ratio: OpenFraction = 0.02
    bits: Annotated[int, Field(ge=2, le=8)] = 8

    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Folds batch norms, then widens in place."""
        example = move(context.task.example, context.device)
        folded = fold_batch_norms(model.eval(), example)
        pairs = [pair for pair in pairs_of_layers(model, example) if can_split(model, pair)]
        split = {
            f"{pair.first} -> {pair.second}": split_pair(model, pair, self.ratio, self.bits)
            for pair in pairs
        }
        context.record.update(folded_norms=len(folded), split=split)
        return model
