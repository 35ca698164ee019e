# SPDX-License-Identifier: Apache-2.0
"""A layer's weight as a kernel with one layout for all kinds of layers.

A kernel is (groups, outputs, inputs, \\*space): outputs and inputs of one group, and the positions of a
convolution's window. Linear layers and embeddings have one group and no space; a transposed convolution's
kernel is that of the scatter that it does, not mirrored.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rarefy.loops.matrix import kind_of
from rarefy.select import Layer, is_embedding


class Shape(NamedTuple):
    """The sizes of a kernel.

    Attributes:
        groups: of a convolution; 1 for other layers.
        outputs, inputs: of one group.
        space: of the window; empty for layers without one.
    """

    groups: int
    outputs: int
    inputs: int
    space: tuple[int, ...] = ()

    @property
    def wide(self) -> tuple[int, ...]:
        """The axes of the window that are longer than 1."""
        return tuple(axis for axis, size in enumerate(self.space) if size > 1)


def layer_kind(module: nn.Module) -> str:
    """How a layer works: "linear", "turned", "conv", "transposed", "embedding"; "" for anything else."""
    return "embedding" if is_embedding(module) else kind_of(module)


def kernel_of(layer: Layer) -> Tensor:
    """The weight as (groups, outputs, inputs, *space), float32 or float64; to be read only."""
    module, w = layer.module, layer.weight.detach()
    w = w if w.dtype == torch.float64 else w.float()
    match layer_kind(module):
        case "linear":
            return w.unsqueeze(0)
        case "turned" | "embedding":
            return w.mT.unsqueeze(0)
        case "transposed":
            return w.unflatten(0, (groups(module), -1)).transpose(1, 2)
        case _:
            return w.unflatten(0, (groups(module), -1))


def weight_from(module: nn.Module, kernel: Tensor) -> Tensor:
    """The inverse of `kernel_of`: a kernel in the layout of a layer's weight."""
    match layer_kind(module):
        case "linear":
            return kernel[0]
        case "turned" | "embedding":
            return kernel[0].mT
        case "transposed":
            return kernel.transpose(1, 2).flatten(0, 1)
        case _:
            return kernel.flatten(0, 1)


def shape_of(kernel: Tensor) -> Shape:
    """The sizes of a kernel."""
    return Shape(kernel.shape[0], kernel.shape[1], kernel.shape[2], tuple(kernel.shape[3:]))


def groups(module: nn.Module) -> int:
    """Groups of a convolution; 1 for other layers."""
    return module.groups if isinstance(module, _ConvNd) else 1
