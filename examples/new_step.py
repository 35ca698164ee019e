# SPDX-License-Identifier: Apache-2.0
"""A step of your own: weights become multiples of a unit, so that few distinct values are left."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy import Context, Step, select


def rounded(weight: Tensor, unit: float) -> Tensor:
    """The nearest multiple of `unit` for every entry; the shape stays."""
    return (weight / unit).round() * unit


@dataclass(frozen=True)
class RoundWeights(Step):
    """Rounds the weights of the selected layers.

    Attributes:
        unit: distance between two neighbouring values.
        layers: which layers; a glob, ``"type:Conv2d"``, an index …
    """

    unit: Annotated[float, Field(gt=0)] = 1 / 64
    layers: str | tuple[str | int, ...] = "*"

    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Rounds in place; the error of each layer goes into the record."""
        errors = {}
        for layer in select(model, self.layers):
            before = layer.weight.clone()
            layer.stored.copy_(rounded(before, self.unit))
            errors[layer.name] = float((layer.weight - before).norm() / before.norm())
        context.record["relative_error"] = errors
        return model
