# SPDX-License-Identifier: Apache-2.0
"""What integers cost under counts of themselves, with a gradient for training.

The model is that of the weight coder (`rarefy.store.neighbours`), as far as sums over a tensor can tell it:
counts in the same row, in the same column and in the whole tensor, and the signs of the neighbours to the
left and above in a kernel's picture. The price between two integers is interpolated, so a weight drifts to
the cheaper one.
"""

import torch
from torch import Tensor

from rarefy.store.adaptive import likely_side
from rarefy.store.neighbours import pictures

LARGEST = 127
"""Codes reach from -127 to 127."""

PSEUDO = 4.0
"""How many codes the tensor's own distribution counts for beside those of a row and a column."""

SURROUNDINGS = 16
"""Kinds of places: negative, zero, positive or nothing to the left, and the same above."""

SHRINK = 32.0
"""How many codes the tensor's own distribution counts for beside those in the same surroundings."""


def code_counts(codes: Tensor, axis: int, levels: int) -> Tensor:
    """How often each code occurs along an axis, float (size of the axis, levels).

    Args:
        codes: integers in [0, levels), any shape of two or more axes.
        axis: whose entries get a histogram each.
        levels: size of the alphabet.
    """
    size = codes.shape[axis]
    moved = codes.movedim(axis, 0).reshape(size, -1)
    places = moved + levels * torch.arange(size, device=codes.device).unsqueeze(1)
    return torch.bincount(places.flatten(), minlength=size * levels).view(size, levels).float()


def information(x: Tensor, side: int = 0) -> Tensor:
    """Bits of every entry under counts of the rounded entries, with a gradient, same shape.

    The probability of code k in row r and column c is (n_r(k) + n_c(k) + 4 p(k)) / (n_r + n_c + 4), where p
    is the tensor's own distribution with half a count for every code; rows are the first axis, columns the
    second (a convolution's kernel counts as one column), and tensors of one axis know only p. In pictures
    (kernels, or rows of a matrix whose `side` is given) it is multiplied by p(k | surroundings) / p(k).
    Between two codes the bits are interpolated.

    Args:
        x: weights in steps, any shape.
        side: of the squares that a matrix's rows consist of, see `picture_side`; 0 if of none.
    """
    low = x.detach().floor().clamp(-LARGEST - 1, LARGEST).long()
    codes = x.detach().round().clamp(-LARGEST, LARGEST).long()
    first = int(min(low.min(), codes.min()))
    levels = int(max(low.max() + 1, codes.max())) - first + 1
    places = codes - first
    counts = torch.bincount(places.flatten(), minlength=levels).float() + 0.5
    p = counts / counts.sum()
    lower, upper = low - first, low - first + 1
    if x.dim() < 2:
        below, above = -p.log2()[lower], -p.log2()[upper]
    else:
        rows, columns = (code_counts(places, axis, levels) for axis in (0, 1))
        total = rows[0].sum() + columns[0].sum() + PSEUDO
        r = torch.arange(x.shape[0], device=x.device).view(-1, *[1] * (x.dim() - 1))
        c = torch.arange(x.shape[1], device=x.device).view(-1, *[1] * (x.dim() - 2))
        around = surroundings(codes, side)
        odds = odds_of(places, around, p)

        def bits(k: Tensor) -> Tensor:
            counted = (rows[r, k] + columns[c, k] + PSEUDO * p[k]).log2()
            return total.log2() - counted - odds[around, k]

        below, above = bits(lower), bits(upper)
    return below + (x - low) * (above - below)


def surroundings(codes: Tensor, side: int = 0) -> Tensor:
    """Of which kind the neighbours in a picture are, 0 to 15, same shape; 15 where there are no pictures.

    Args:
        codes: integers, any shape of two or more axes.
        side: as in `information`.
    """
    if codes.dim() == 2 and not side:
        return torch.full_like(codes, SURROUNDINGS - 1)
    rows, columns, positions, width = pictures(tuple(codes.shape), side)
    signs = codes.reshape(rows, columns, positions // width, width).clamp(-1, 1) + 1
    left, upper = torch.full_like(signs, 3), torch.full_like(signs, 3)
    left[..., 1:], upper[:, :, 1:] = signs[..., :-1], signs[:, :, :-1]
    return (4 * left + upper).view(codes.shape)


def odds_of(places: Tensor, around: Tensor, p: Tensor) -> Tensor:
    """log2 of p(code | surroundings) / p(code), (16, levels); 0 where all surroundings are the same.

    Args:
        places: numbers of the codes, any shape.
        around: their surroundings, same shape.
        p: (levels,) how likely each code is by itself.
    """
    if bool((around == around.flatten()[0]).all()):
        return p.new_zeros(SURROUNDINGS, p.numel())
    joint = (around * p.numel() + places).flatten()
    n = torch.bincount(joint, minlength=SURROUNDINGS * p.numel()).view(SURROUNDINGS, -1).float()
    return ((n + SHRINK * p) / (n.sum(1, keepdim=True) + SHRINK) / p).log2()


def picture_side(x: Tensor) -> int:
    """The side of the squares that a matrix's rows seem to consist of, 0 if of none or for other tensors.

    Args:
        x: weights in steps.
    """
    return likely_side(x.detach().round().sign().flatten().cpu().numpy(), tuple(x.shape))
