# SPDX-License-Identifier: Apache-2.0
"""Linear equations with a symmetric matrix that may be singular, held off the edge by a small ridge."""

import torch
from torch import Tensor

from rarefy.errors import ModelError


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


def inverse_factor(A: Tensor, damping: float) -> Tensor:
    """The upper triangle U with ``(A + damping · mean(diagonal of A) · I)⁻¹ = UᵀU``, in float64.

    Args:
        A: second moments, (…, n, n); what is always zero counts as independent of the others.
        damping: share of the diagonal's mean.

    Raises:
        ModelError: the moments are not finite.
    """
    if not bool(torch.isfinite(A).all()):
        raise ModelError("what a layer reads is NaN or infinite on calibration data")
    A = A.to(torch.float64, copy=True)
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    ridge = damping * mean + torch.where(diagonal == 0, mean.clamp(min=1e-30), 0.0)
    diagonal.add_(ridge.clamp(min=torch.finfo(A.dtype).tiny))
    A = torch.linalg.cholesky(A)
    A = torch.cholesky_inverse(A)
    return torch.linalg.cholesky(A, upper=True)
