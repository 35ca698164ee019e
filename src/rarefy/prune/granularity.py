# SPDX-License-Identifier: Apache-2.0
"""What is pruned as one: single weights, N of every M neighbours, or blocks."""

import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.errors import RecipeError

PATTERN = r"^(element|[1-9]\d*:[1-9]\d*|[1-9]\d*x[1-9]\d*)$"


def parse(granularity: str) -> tuple[str, int, int]:
    """``"element"``, ``"2:4"`` (two of four are kept) or ``"4x1"`` (rows x columns) as kind and two numbers.

    Raises:
        RecipeError: N:M that keeps all or none.
    """
    found = re.fullmatch(r"(\d+)([:x])(\d+)", granularity)
    if found is None:
        return "element", 1, 1
    first, second = int(found[1]), int(found[3])
    if found[2] == "x":
        return "block", first, second
    if first >= second:
        raise RecipeError(
            f"granularity '{granularity}' keeps everything; write N:M with N < M, as '2:4'"
        )
    return "n:m", first, second


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Keeps the `n` largest of every `m` neighbours along axis 1 (inputs); ties go to the lower index.

    Args:
        scores: (out, in, …).

    Returns:
        A mask of the same shape. Where m does not divide the inputs, the last group counts the missing
        ones as zeros, so it keeps at most n too.
    """
    along = scores.movedim(1, -1)  # (out, …, in)
    missing = -along.shape[-1] % m
    padded = F.pad(along, (0, missing), value=-math.inf)
    groups = padded.reshape(*padded.shape[:-1], -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.flatten(-2)[..., : along.shape[-1]].movedim(-1, 1)


def pool_blocks(scores: Tensor, height: int, width: int) -> Tensor:
    """The summed importance of every block of a weight seen as a matrix (out, in · kernel).

    Args:
        scores: of any shape with two or more axes; a negative score marks a weight that is gone.

    Returns:
        (out / height, in · kernel / width), rounded up; -1 where a block is gone entirely.
    """
    matrix = scores.flatten(1)
    pad = (0, -matrix.shape[1] % width, 0, -matrix.shape[0] % height)
    tiles = F.pad(matrix, pad, value=-1.0)
    tiles = tiles.unflatten(1, (-1, width)).unflatten(0, (-1, height))  # (rows, h, columns, w)
    total = tiles.clamp(min=0).sum((1, 3))
    return torch.where((tiles < 0).all(3).all(1), -torch.ones_like(total), total)


def spread_blocks(keep: Tensor, height: int, width: int, shape: torch.Size) -> Tensor:
    """The mask of single weights that a mask of blocks means; the inverse of `pool_blocks`."""
    wide = keep.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return wide[: shape[0], : math.prod(shape[1:])].reshape(shape)
