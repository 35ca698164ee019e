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


def any_nan(tensor: Tensor) -> bool:
    """Whether a value of a tensor is NaN; infinity is none.

    Examples:
        >>> any_nan(torch.tensor([1.0, torch.inf])), any_nan(torch.tensor([torch.nan]))
        (False, True)
    """
    return any(bool(torch.isnan(piece).any()) for piece in tensor.detach().flatten().split(PIECE))
