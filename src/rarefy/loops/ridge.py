# SPDX-License-Identifier: Apache-2.0
"""Linear equations with a symmetric matrix that may be singular, held off the edge by a small ridge."""

import torch
from torch import Tensor


def ridge_solve(A: Tensor, B: Tensor, damping: float = 1e-12) -> Tensor:
    """X with ``(A + damping · mean(diagonal of A) · I) X = B``.

    Args:
        A: symmetric, positive semidefinite, (…, n, n).
        B: (…, n, m), or (n,) beside one matrix.
        damping: the ridge as a share of the diagonal's mean.

    Examples:
        >>> ridge_solve(torch.eye(2), torch.ones(2), damping=1.0)
        tensor([0.5000, 0.5000])
    """
    ridge = damping * A.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = ridge.clamp(min=torch.finfo(A.dtype).tiny)
    return torch.linalg.solve(A + ridge[..., None, None] * torch.eye(A.shape[-1]).to(A), B)
