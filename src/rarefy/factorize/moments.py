# SPDX-License-Identifier: Apache-2.0
"""Second moments of what layers read and give, in the shape in which decompositions want them."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rarefy.factorize.decomposition import Decomposition
from rarefy.factorize.kernel import Shape, groups, layer_kind
from rarefy.loops.matrix import rows_of

LARGEST = 2**24  # numbers in a piece of unfolded input


def by_groups(rows: Tensor) -> Tensor:
    """Rows (N, n) or (groups, N, n) as (groups, N, n)."""
    return rows if rows.dim() == 3 else rows.unsqueeze(0)


def output_rows(module: nn.Module, y: Tensor) -> Tensor:
    """A layer's output as (groups, N, outputs of a group)."""
    if not isinstance(module, _ConvNd):
        return y.reshape(1, -1, y.shape[-1])
    nd = len(module.kernel_size)
    y = y if y.dim() == nd + 2 else y.unsqueeze(0)
    y = y.unflatten(1, (groups(module), -1)).flatten(3)  # (B, G, O, positions)
    return y.permute(1, 0, 3, 2).flatten(1, 2)


def window_rows(module: nn.Module, x: Tensor, shape: Shape, axes: Sequence[int]) -> Tensor:
    """A layer's input as rows that tell apart the window's positions along some leading axes only.

    Returns:
        (groups, N · positions along the other axes, inputs · positions along these).
    """
    rows = by_groups(rows_of(module, x))
    G, N, _ = rows.shape
    near = math.prod(shape.space[a] for a in axes)
    rows = rows.reshape(G, N, shape.inputs, *shape.space)
    if isinstance(module, _ConvTransposeNd):
        rows = rows.flip(list(range(3, rows.dim())))  # rows_of mirrors the window
    rows = rows.reshape(G, N, shape.inputs, near, -1).movedim(-1, 2)
    return rows.reshape(G, -1, shape.inputs * near)


def pieces_of(x: Tensor, shape: Shape) -> Iterator[Tensor]:
    """An input cut along its first axis so that unfolding a piece takes little memory."""
    width = math.prod(shape.space)
    if x.dim() < 2:
        yield x
        return
    each = max(1, x[0].numel() * width)
    yield from x.split(max(1, LARGEST // each))


@torch.no_grad()
def moment_for(
    kind: type[Decomposition],
    module: nn.Module,
    shape: Shape,
    inputs: Iterable[Tensor],
    damping: float,
) -> Tensor | None:
    """What a decomposition needs to fit the outputs: a mean of products, (groups, n, n) in double precision.

    Args:
        kind: of the decomposition; tells what is wanted.
        module: the layer with its weight.
        shape: of its kernel.
        inputs: of the layer, one call after the other.
        damping: share of white inputs that is mixed in, so that directions that the data never show are
            fitted as the weights say.

    Returns:
        None if the decomposition can't use any.
    """
    if kind.side == "none":
        return None
    total, count = torch.zeros((), dtype=torch.float64), 0
    bias = getattr(module, "bias", None)
    for x in inputs:
        for part in pieces_of(x, shape):
            if kind.side == "outputs":
                rows = output_rows(module, module(part))
                if bias is not None:
                    rows = rows - bias.reshape(groups(module), 1, -1)
            else:
                rows = window_rows(module, part, shape, kind.window(shape))
            total = total.to(rows.device) + (rows.mT @ rows).double()
            count += rows.shape[1]
    mean = total / max(count, 1)
    if kind.side == "outputs":
        return mean + damping * white_outputs(module, shape, mean)
    size = mean.diagonal(dim1=-2, dim2=-1).mean(-1)
    return mean + damping * size[:, None, None] * torch.eye(mean.shape[-1]).to(mean)


def white_outputs(module: nn.Module, shape: Shape, mean: Tensor) -> Tensor:
    """The second moment that white inputs would give, as large as the one found."""
    held: Tensor = module.weight.detach().double()  # type: ignore[operator]
    match layer_kind(module):
        case "turned" | "embedding":
            W = held.mT.unsqueeze(0)
        case "transposed":
            W = held.unflatten(0, (shape.groups, -1)).transpose(1, 2).flatten(2)
        case _:
            W = held.reshape(shape.groups, shape.outputs, -1)
    white = W @ W.mT
    trace = [t.diagonal(dim1=-2, dim2=-1).sum(-1) for t in (mean, white)]
    return white * (trace[0] / trace[1].clamp(min=1e-30))[:, None, None]
