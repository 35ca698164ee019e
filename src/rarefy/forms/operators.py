# SPDX-License-Identifier: Apache-2.0
"""Two operators that an exporter can recognise: quantise-and-dequantise, and dequantise stored codes."""

from typing import Any

import torch
from torch import Tensor

from rarefy.forms.grid import along, from_codes


@torch.library.custom_op("rarefy::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int
) -> Tensor:
    """Rounds `x` to scale * (code - zero_point) with codes in [low, high].

    Gradient: straight through for `x` inside the range; for `scale` as in LSQ (Esser et al., Learned Step
    Size Quantization, 2020, arXiv 1902.08153, equation 3). An `axis` of -1 means one scale for all.
    """
    s, z = spread(x, scale, zero_point, axis)
    return (x / s).round_().add_(z).clamp_(low, high).sub_(z).mul_(s)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


def spread(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point as floats that broadcast over `x`."""
    place = None if axis < 0 else axis
    return along(scale, place, x.dim()), along(zero_point.to(x.dtype), place, x.dim())


def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what the backward pass needs."""
    x, scale, zero_point, axis, low, high = inputs
    ctx.save_for_backward(x, scale, zero_point)
    ctx.settings = (axis, low, high)


def straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Passes the gradient where no code was clamped; gives LSQ's gradient to the scale."""
    x, scale, zero_point = ctx.saved_tensors
    axis, low, high = ctx.settings
    s, z = spread(x, scale, zero_point, axis)
    position = (x / s).add_(z)
    code = position.clamp(low, high)
    inside = code == position
    to_scale = None
    if ctx.needs_input_grad[1]:
        share = code.round_().sub_(torch.where(inside, position, z)).mul_(gradient)
        others = [i for i in range(x.dim()) if i != axis]
        to_scale = share.sum() if axis < 0 else share.sum(others)
        to_scale = to_scale.view(scale.shape)
    return gradient * inside, to_scale, None, None, None, None


fake_quantize.register_autograd(straight_through, setup_context=remember)


@torch.library.custom_op("rarefy::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """scale * (codes - zero_point), float32; an `axis` of -1 means one scale for all."""
    return from_codes(codes, scale, zero_point, None if axis < 0 else axis)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)
