# SPDX-License-Identifier: Apache-2.0
"""Layers in integers alone: sums in 32 bits, scaled by a fixed-point number.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, sections 2.2 to 2.4 and appendix A. Codes and sums are held in int64, and checked to
be within the bits that a kernel has; values are scale * (code - zero point).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.errors import ModelError

INT32 = 2**31
HEADROOM = 20  # bits by which the terms of a sum are shifted up before they are scaled


def fixed_multiplier(factor: Tensor) -> tuple[Tensor, Tensor]:
    """A positive factor as M0 * 2^(-31 - n) with the integer M0 in [2^30, 2^31) (equation 6).

    Args:
        factor: any shape.

    Returns:
        M0 and n, int64, like `factor`.
    """
    mantissa, exponent = torch.frexp(factor.double())
    M0 = torch.round(mantissa * INT32).long()
    full = M0 == INT32
    return torch.where(full, M0 // 2, M0), -(exponent.long() + full.long())


def scaled(x: Tensor, M0: Tensor, n: Tensor) -> Tensor:
    """x * M0 * 2^(-31 - n) in integers, rounded once, to the nearest, halves up.

    The product has 62 bits, so nothing is lost before the shift. Kernels that round it to 32 bits first, as
    the paper's do, miss the nearest code by up to half a unit in the last place of the shifted sum: enough
    to turn one code in 300 of a convolution, which a finer grid behind it makes several codes of.

    Args:
        x: int64 holding int32.
        M0, n: see `fixed_multiplier`; a negative n shifts up.
    """
    product, shift = x * M0, 31 + n
    half = 1 << (shift - 1).clamp(min=0, max=61)
    down = (product + torch.where(shift > 0, half, 0)) >> shift.clamp(min=0, max=62)
    down = torch.where(shift > 62, 0, down)  # less than a half
    return down << (-shift).clamp(min=0)


def requantise(
    total: Tensor, factor: Tensor, zero_point: int, low: int, high: int, axis: int = 1
) -> Tensor:
    """Codes of a result from its 32-bit sums: clamp(total * factor + zero point).

    Args:
        total: sums of any shape, int64 holding int32.
        factor: () or (channels,): scale of the sums over scale of the result.
        zero_point: of the result.
        low, high: ends of the codes; a clip behind the layer narrows them.
        axis: of the channels.
    """
    M0, n = fixed_multiplier(factor)
    if factor.dim():
        shape = [-1 if i == axis % total.dim() else 1 for i in range(total.dim())]
        M0, n = M0.view(shape), n.view(shape)
    return (scaled(total, M0, n) + zero_point).clamp(low, high)


def within_int32(total: Tensor, layer: str = "layer") -> Tensor:
    """The sums as int64.

    Raises:
        ModelError: one does not fit into 32 bits.
    """
    if total.numel() and not bool((total.abs() < INT32).all()):
        raise ModelError(f"a sum of '{layer}' exceeds 32 bits: {float(total.abs().max()):.3g}")
    return total.long()


def integer_conv(
    x: Tensor,
    zero_point: int,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    pads: list[int],
    dilation: list[int],
    groups: int = 1,
) -> Tensor:
    """32-bit sums of a convolution.

    Args:
        x: (B, I, …) codes.
        zero_point: of `x`; padding is with it, that is with zeros.
        w: (O, I / groups, …) signed codes, zero point 0.
        bias: (O,) 32-bit codes, or None.
        stride, dilation: one for each spatial axis.
        pads: begins of all spatial axes, then ends, as in ONNX.
        groups: of channels.
    """
    spatial = x.dim() - 2
    around = [p for i in reversed(range(spatial)) for p in (pads[i], pads[spatial + i])]
    # float64 holds these sums exactly
    shifted = F.pad((x - zero_point).double(), around)
    kernel = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    total = kernel(shifted, w.double(), None, stride, 0, dilation, groups)
    if bias is not None:
        total = total + bias.double().view(1, -1, *[1] * spatial)
    return within_int32(total, "convolution")


def integer_product(x: Tensor, x_zero: int, w: Tensor, w_zero: int, bias: Tensor | None) -> Tensor:
    """32-bit sums of a matrix product (…, K) x (…, K, N) of codes; `bias` (N,) holds 32-bit codes."""
    total = (x - x_zero).double() @ (w - w_zero).double()
    if bias is not None:
        total = total + bias.double()
    return within_int32(total, "matrix product")


def integer_add(
    a: tuple[Tensor, float, int],
    b: tuple[Tensor, float, int],
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Tensor:
    """Codes of a sum whose terms have scales of their own (appendix A.2).

    Args:
        a, b: codes, scale, zero point.
        scale, zero_point: of the sum.
        low, high: ends of its codes.
    """
    widest = 2 * max(a[1], b[1])
    total = torch.zeros((), dtype=torch.int64)
    for codes, own, zero in (a, b):
        M0, n = fixed_multiplier(torch.tensor(own / widest, dtype=torch.float64))
        total = total + scaled((codes - zero) << HEADROOM, M0, n)
    factor = torch.tensor(widest / (scale * 2**HEADROOM), dtype=torch.float64)
    return requantise(total, factor, zero_point, low, high)
