# SPDX-License-Identifier: Apache-2.0
"""The layers that a layer is replaced by: their sizes, what they cost, and how they are built.

A chain of convolutions is the convolution with the composed kernel exactly, padding included, if every
axis of the window is handled by one piece and only the last has a bias: a piece strides, pads and dilates
along its own axes and leaves the others alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rarefy.factorize.kernel import Shape, layer_kind

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Piece:
    """One layer of a chain.

    Attributes:
        outputs, inputs: of all groups together.
        kernel: of the window, one size an axis; empty for linear pieces.
        axes: those along which it strides, pads and dilates as the whole layer does.
        groups: of the piece.
        repeats: how often a linear piece is applied to what was one row of the layer.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    groups: int = 1
    repeats: int = 1

    @property
    def size(self) -> tuple[int, ...]:
        """Of the weight in the layout of a convolution: (outputs, inputs / groups, *kernel)."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def parameters(self) -> int:
        """Weights of the piece, bias left out."""
        return math.prod(self.size)


def along(space: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The window's sizes on some axes, 1 on the others."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(space))


def whole(shape: Shape) -> tuple[Piece, ...]:
    """The layer itself as a chain of one."""
    G, axes = shape.groups, tuple(range(len(shape.space)))
    return (Piece(G * shape.outputs, G * shape.inputs, shape.space, axes, G),)


def compose(shape: Shape, pieces: Sequence[Piece], weights: Sequence[Tensor]) -> Tensor:
    """The kernel (groups, outputs, inputs, *space) of a chain of convolutions or linear layers.

    Args:
        shape: of the kernel.
        pieces: whose axes rise from one to the next.
        weights: one for each, (outputs, inputs / groups, *kernel).
    """
    G = shape.groups
    total: Tensor | None = None
    for piece, weight in zip(pieces, weights, strict=True):
        inner = weight.reshape(G, piece.groups // G, -1, weight.shape[1], math.prod(piece.kernel))
        q, o, i, x = inner.shape[1:]  # of (G, q, o, i, x)
        if q == 1:
            factor = inner[:, 0]
        else:
            factor = inner.new_zeros(G, q, o, q, i, x)
            at = torch.arange(q, device=weight.device)
            factor[:, at, :, at] = inner.transpose(0, 1)
            factor = factor.flatten(3, 4).flatten(1, 2)
        if total is None:
            total = factor
        else:
            total = torch.einsum("gahx,ghcy->gacyx", factor, total).flatten(3)
    assert total is not None
    return total.reshape(G, shape.outputs, shape.inputs, *shape.space)


def macs_of(
    module: nn.Module, pieces: Sequence[Piece], calls: Sequence[tuple[torch.Size, torch.Size]]
) -> int:
    """Multiply-accumulates of a chain in the place of `module`.

    Args:
        module: the layer as it is.
        pieces: that replace it.
        calls: shapes of the layer's input and output, one pair a call.
    """
    kind, total = layer_kind(module), 0
    if kind == "embedding":
        pieces = pieces[1:]
    for before, after in calls:
        if kind in ("linear", "turned", "embedding"):
            rows = math.prod(before if kind == "embedding" else before[:-1])
            rows = math.prod(after[:-1]) if kind == "embedding" else rows
            total += sum(p.parameters * p.repeats * rows for p in pieces)
            continue
        nd = len(pieces[0].kernel)
        examples = before[0] if len(before) == nd + 2 else 1
        space = list(before[-nd:])
        for piece in pieces:
            entered = math.prod(space)
            for axis in piece.axes:
                space[axis] = after[-nd:][axis]
            positions = entered if kind == "transposed" else math.prod(space)
            total += piece.parameters * positions * examples
    return total


def build(
    module: nn.Module,
    pieces: Sequence[Piece],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norms: bool = False,
) -> nn.Sequential:
    """The layers that stand for `module`, in its mode, with its device and type.

    Args:
        module: linear, convolution, transposed convolution or embedding.
        pieces: of the chain.
        weights: one for each piece, (outputs, inputs / groups, *kernel).
        bias: of the whole, (outputs,), or None.
        norms: whether a batch norm follows every piece.
    """
    held: Tensor = module.weight  # type: ignore[assignment]
    layers: list[nn.Module] = []
    for number, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
        last = number == len(pieces) - 1
        own = bias if last else None
        layer = one_layer(module, piece, first=number == 0, biased=own is not None)
        put(layer, "weight", in_layout(layer, piece, weight), held)
        if own is not None:
            put(layer, "bias", own, held)
        layers.append(layer)
        if norms:
            layers.append(norm_of(piece).to(held.device, held.dtype))
    return nn.Sequential(*layers).train(module.training)


def put(layer: nn.Module, name: str, value: Tensor, held: Tensor) -> None:
    """Sets a parameter that is like the one held before."""
    value = value.detach().to(held.device, held.dtype)
    copied = torch.clone(value, memory_format=torch.contiguous_format)
    setattr(layer, name, nn.Parameter(copied, requires_grad=held.requires_grad))


def in_layout(layer: nn.Module, piece: Piece, weight: Tensor) -> Tensor:
    """A piece's weight as its layer holds it."""
    if isinstance(layer, _ConvTransposeNd):
        return weight.unflatten(0, (piece.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.mT if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) else weight


def one_layer(module: nn.Module, piece: Piece, first: bool, biased: bool) -> nn.Module:
    """An empty layer for a piece."""
    kind = layer_kind(module)
    if kind == "embedding" and first:
        return lookup(module, piece)
    if kind in ("linear", "turned", "embedding"):
        return nn.Linear(piece.inputs, piece.outputs, bias=biased, device="meta")
    assert isinstance(module, _ConvNd)
    nd, mine = len(module.kernel_size), piece.axes
    settings: dict[str, Any] = {
        "stride": tuple(module.stride[a] if a in mine else 1 for a in range(nd)),
        "dilation": tuple(module.dilation[a] if a in mine else 1 for a in range(nd)),
        "groups": piece.groups,
        "bias": biased,
        "device": "meta",
    }
    if isinstance(module.padding, str):
        settings["padding"] = module.padding
        settings["padding_mode"] = module.padding_mode
    else:
        padding = tuple(int(module.padding[a]) if a in mine else 0 for a in range(nd))
        settings["padding"] = padding
        settings["padding_mode"] = module.padding_mode if any(padding) else "zeros"
    if isinstance(module, _ConvTransposeNd):
        extra = tuple(module.output_padding[a] if a in mine else 0 for a in range(nd))
        settings["output_padding"] = extra
        return TRANSPOSED[nd - 1](piece.inputs, piece.outputs, piece.kernel, **settings)
    return CONVOLUTIONS[nd - 1](piece.inputs, piece.outputs, piece.kernel, **settings)


def lookup(module: nn.Module, piece: Piece) -> nn.Module:
    """An embedding with as many entries and shorter rows."""
    settings: dict[str, Any] = {
        "padding_idx": module.padding_idx,
        "scale_grad_by_freq": module.scale_grad_by_freq,
        "sparse": module.sparse,
        "device": "meta",
    }
    if isinstance(module, nn.EmbeddingBag):
        return nn.EmbeddingBag(piece.inputs, piece.outputs, mode=module.mode, **settings)
    return nn.Embedding(piece.inputs, piece.outputs, **settings)


def norm_of(piece: Piece) -> nn.Module:
    """A fresh batch norm behind a piece."""
    kinds: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return kinds[len(piece.kernel)](piece.outputs)
