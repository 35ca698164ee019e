# SPDX-License-Identifier: Apache-2.0
"""Weights and biases of layers that are rounded in place: what they were, and what they take in a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rarefy.quantize.slopes import Rate
from rarefy.select import Layer
from rarefy.store.coding import encode_tensor


class Copies:
    """The weights and biases of layers as they are now.

    Args:
        layers: whose weights are plain parameters.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._kept = [(x, x.stored.detach().clone(), bias_of(x)) for x in layers]

    def restore(self) -> None:
        """Puts them back."""
        for layer, weight, bias in self._kept:
            layer.stored.copy_(weight)
            if bias is not None:
                layer.module.bias.copy_(bias)  # type: ignore[operator]


@dataclass(frozen=True)
class Begun:
    """What rounding at any rate begins with.

    Attributes:
        layers, tables: that are rounded; embeddings are tables.
        batches: of calibration data.
        energy: how much the outputs depend on each row, by layer.
        rates: what each takes at a slope; made better by every rounding.
        originals: the weights.
    """

    layers: list[Layer]
    tables: list[Layer]
    batches: list[Any]
    energy: dict[str, Tensor]
    rates: dict[str, Rate]
    originals: Copies

    def all(self) -> list[Layer]:
        """Layers and tables."""
        return [*self.layers, *self.tables]


@dataclass(frozen=True)
class Rounded:
    """What a rounding came to: log2 of its slope, bits in all, exponents of steps (weight, bias) by layer."""

    slope: float
    bits: float
    grids: dict[str, tuple[float, float]]


def stored_bits(layer: Layer) -> float:
    """What the weight coder takes for a layer's weight and bias, in bits."""
    tensors = [layer.weight.detach(), bias_of(layer)]
    return 8.0 * sum(len(encode_tensor(t.cpu().numpy())) for t in tensors if t is not None)


def bias_of(layer: Layer) -> Tensor | None:
    """A copy of a layer's bias, if it has one that is a plain parameter."""
    bias = layer.module._parameters.get("bias")
    return None if bias is None else bias.detach().clone()
