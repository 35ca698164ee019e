# SPDX-License-Identifier: Apache-2.0
"""Whether a tensor holds only numbers, looked at a piece at a time."""

import torch
from torch import Tensor

PIECE = 1 << 18


def all_finite(tensor: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite.

    Examples:
        >>> all_finite(torch.tensor([1.0, -2.0])), all_finite(torch.tensor([1.0, torch.inf]))
        (True, False)
    """
    pieces = tensor.detach().flatten().split(PIECE)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def finite_or_hidden(tensor: Tensor) -> bool:
    """Whether all values are numbers or minus infinity, by which masks hide entries.

    Examples:
        >>> [finite_or_hidden(torch.tensor([1.0, x])) for x in (-torch.inf, torch.inf, torch.nan)]
        [True, False, False]
    """
    pieces = tensor.detach().flatten().split(PIECE)
    return all(bool((piece < torch.inf).all()) for piece in pieces)
