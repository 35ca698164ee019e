# SPDX-License-Identifier: Apache-2.0
"""Neighbouring 8-bit weights whose products an x86 processor without VNNI adds up in 16 bits.

Its instruction multiplies unsigned activations and signed weights and adds the products in pairs, cut off at
32,767. With activations up to 255 a pair of weights is safe if the sum of the two is at most 128. Only
weights of the same sign can exceed that, so far fewer codes have to give way than with 7-bit weights.
"""

import torch
from torch import Tensor

LIMIT = 128  # 255 * 128 = 32,640


def rows_of(weight: Tensor, axis: int = 0, groups: int = 1) -> Tensor | None:
    """A weight as (outputs, products of one sum) in the order in which kernels multiply; None if depthwise.

    Convolutions go over the inputs first and over the kernel's places last. Depthwise kernels add in 32 bits.

    Args:
        weight: of a convolution (O, I / groups, …) or a linear layer, (O, I) or, with `axis` 1, (I, O).
        axis: that counts the outputs.
        groups: of a convolution.
    """
    if weight.dim() > 2:
        if weight.shape[1] == 1 and groups == weight.shape[0]:
            return None
        return weight.movedim(1, -1).flatten(1)
    return weight.movedim(axis, 0)


def like(rows: Tensor, weight: Tensor, axis: int = 0) -> Tensor:
    """Rows back in the shape of the weight that `rows_of` took them from."""
    if weight.dim() > 2:
        return rows.view(weight.movedim(1, -1).shape).movedim(-1, 1).contiguous()
    return rows.movedim(0, axis).contiguous()


def starts_of(weight: Tensor) -> tuple[int, ...]:
    """Where pairs begin in a row: kernels with an odd number of inputs may pair either way."""
    return (0, 1) if weight.dim() > 2 and weight.shape[1] % 2 else (0,)


def sums(rows: Tensor, start: int) -> Tensor:
    """(outputs, pairs) sums of neighbours."""
    K = rows.shape[1]
    return rows[:, start : K - 1 : 2].int() + rows[:, start + 1 : K : 2].int()


def overflows(codes: Tensor, axis: int = 0, groups: int = 1) -> bool:
    """Whether any pair of int8 codes of a weight could exceed 16 bits; shapes as for `rows_of`."""
    rows = rows_of(codes, axis, groups)
    if rows is None or not rows.numel():
        return False
    return any(bool((sums(rows, start).abs() > LIMIT).any()) for start in starts_of(codes))


def limited(rows: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Codes (outputs, K), held as floats, with both of an overflowing pair moved towards zero.

    The excess is shared, which costs least squared error. A pair of different signs can't exceed.
    """
    rows, K = rows.clone(), rows.shape[1]
    for start in starts:
        a, b = rows[:, start : K - 1 : 2], rows[:, start + 1 : K : 2]
        total = a + b
        excess = (total.abs() - LIMIT).clamp_(min=0)
        half = (excess / 2).ceil_()
        a.sub_(total.sign() * half)
        b.sub_(total.sign() * (excess - half))
    return rows


def safe_scale(
    rows: Tensor, scale: Tensor, highest: int, starts: tuple[int, ...], steps: int = 33
) -> Tensor:
    """The scales, wider where the weights that must give way cost more than coarser steps do.

    Args:
        rows: (outputs, K) weights.
        scale: (outputs,) that fit the largest of each row.
        highest: code, 127 for 8 bits.
        starts: see `starts_of`.
        steps: scales that are tried, up to twice as wide, with which no pair exceeds.
    """

    def coded(of: Tensor, by: Tensor) -> Tensor:
        return (of / by).round_().clamp_(-highest, highest)

    codes = coded(rows, scale.unsqueeze(1))
    over = torch.zeros_like(scale, dtype=torch.bool)
    for start in starts:
        over |= (sums(codes, start).abs() > LIMIT).any(1)
    found, part, own = scale.clone(), rows[over], scale[over]
    least, best = torch.full_like(own, float("inf")), own.clone()
    for share in torch.linspace(1.0, 2.0, steps):
        tried = own * share
        by = tried.unsqueeze(1)
        error = limited(coded(part, by), starts).mul_(by).sub_(part).square_().sum(1)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    found[over] = best
    return found
