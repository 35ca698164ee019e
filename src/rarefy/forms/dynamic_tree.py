# SPDX-License-Identifier: Apache-2.0
"""8-bit codes that spend their bits where they are needed: digits for large values, exponents for small ones.

Dettmers: 8-Bit Approximations for Parallelism in Deep Learning, 2016, arXiv 1511.04561, section 3: one sign
bit, a run of zeros that counts powers of ten, a one, and linear fraction bits over [0.1, 1]. In blocks, each
scaled by its own largest value: Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise
Quantization, 2022, arXiv 2110.02861, section 2.
"""

import math
from functools import cache

import torch
from torch import Tensor

BLOCK = 2048


@cache
def tree_values(signed: bool = True) -> Tensor:
    """The values of all 256 codes in ascending order, float32, 0 and 1 (and -1) among them.

    After e zeros and a one, the k = n - 1 - e bits that are left, read as an integer j, mean
    10^-e · (0.1 + 0.9 · (j + 1) / 2^k); n is 7, or 8 without a sign. Nothing but zeros means 0, which has
    two codes where there is a sign.

    Returns:
        (256,), the signed ones within [-1, 1], 255 of them distinct.
    """
    n = 7 if signed else 8
    positive = [
        10.0**-e * (0.1 + 0.9 * (j + 1) / 2 ** (n - 1 - e))
        for e in range(n)
        for j in range(2 ** (n - 1 - e))
    ]
    found = [0.0, 0.0, *positive, *(-v for v in positive)] if signed else [0.0, *positive]
    return torch.tensor(sorted(found), dtype=torch.float64).float()


def nearest_codes(x: Tensor, signed: bool = True) -> Tensor:
    """uint8 places of the nearest table values, found by binary search between the midpoints."""
    values = tree_values(signed).to(x.device)
    borders = (values[1:] + values[:-1]) / 2
    return torch.bucketize(x, borders).to(torch.uint8)


def to_tree_codes(x: Tensor, signed: bool = True, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Codes of a tensor in blocks, and each block's largest absolute value.

    Args:
        x: any shape; without a sign all values are >= 0.
        signed: whether a bit is spent on the sign.
        block: values that share a scale; the last block may be shorter.

    Returns:
        codes (blocks, block) uint8, filled up with zeros, and reach (blocks,) float32.
    """
    flat = x.detach().flatten().float()
    short = -len(flat) % block
    rows = torch.nn.functional.pad(flat, (0, short)).view(-1, block)
    reach = rows.abs().amax(1)
    safe = torch.where(reach > 0, reach, torch.ones_like(reach))
    return nearest_codes(rows / safe.unsqueeze(1), signed), reach


def from_tree_codes(
    codes: Tensor, reach: Tensor, shape: torch.Size | tuple[int, ...], signed: bool = True
) -> Tensor:
    """The tensor of some codes, float32."""
    values = tree_values(signed).to(codes.device)
    rows = values[codes.long()] * reach.unsqueeze(1)
    return rows.flatten()[: math.prod(shape)].view(shape)
