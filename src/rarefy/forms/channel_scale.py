# SPDX-License-Identifier: Apache-2.0
"""Channels multiplied by constants, in front of a layer whose weights make up for it."""

from collections import OrderedDict

from torch import Tensor, nn


class ChannelScale(nn.Module):
    """y = x · factors, channel by channel of the last axis.

    Args:
        factors: (channels,).
    """

    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same shape."""
        return x * self.factors


def scaled(layer: nn.Module, factors: Tensor) -> nn.Sequential:
    """A layer behind the multiplication of what it reads.

    Args:
        layer: reads (..., channels).
        factors: (channels,).
    """
    return nn.Sequential(OrderedDict(scale=ChannelScale(factors), layer=layer))
