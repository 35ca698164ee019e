# SPDX-License-Identifier: Apache-2.0
"""Leading singular directions of matrices, through the Gram matrix and a symmetric eigenproblem.

Eckart, Young: The approximation of one matrix by another of lower rank, 1936: the best rank-k fit keeps the k
largest singular values. With the Gram matrix of the shorter side this costs a tenth of a singular value
decomposition of a wide matrix. Squaring costs half of the digits, so where single precision could mix the
directions that are kept with those that are dropped, the Gram matrix is formed in double precision.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rarefy.errors import ModelError

NOISE = 1e-5  # of the largest eigenvalue: below, single precision can't tell directions apart


def eigenbasis(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, n), falling and not negative, and eigenvectors (…, n, n) of symmetric matrices."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


@dataclass
class Directions:
    """The eigenvectors of a Gram matrix, in as much precision as a rank needs.

    Args:
        gram: makes the matrix (groups, n, n) in a type.
        dtype: in which it is tried first.
        shape: (m, n) of the matrix that it is the Gram matrix of; n its shorter side.
    """

    gram: Callable[[torch.dtype], Tensor]
    dtype: torch.dtype
    shape: tuple[int, int]
    found: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def basis(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the matrix formed in a type.

        Raises:
            ModelError: values that are not finite.
        """
        if dtype not in self.found:
            gram = self.gram(dtype)
            if not bool(torch.isfinite(gram).all()):
                raise ModelError("a layer to factorise or its inputs hold NaN or infinity")
            self.found[dtype] = eigenbasis(gram)
        return self.found[dtype]

    def leading(self, k: int) -> Tensor:
        """The k leading directions, orthonormal columns (groups, n, k)."""
        values, vectors = self.basis(self.dtype)
        if self.dtype == torch.float32 and k < values.shape[-1]:
            doubtful = values[..., k - 1] < NOISE * values[..., 0]
            if bool(doubtful.any()):
                vectors = self.basis(torch.float64)[1].float()
        return vectors[..., :k]

    @property
    def squares(self) -> Tensor:
        """(groups, n) squared singular values, falling."""
        return self.basis(self.dtype)[0]


def energy_rank(squares: Tensor, energy: float) -> int:
    """The least k whose k largest squared singular values hold a share of their sum; at least 1.

    Args:
        squares: (groups, n), falling; all groups have the same rank.
        energy: share in (0, 1].
    """
    upto = squares.double().sum(0).cumsum(0)
    if float(upto[-1]) <= 0:
        return 1
    return min(int((upto < energy * upto[-1] * (1 - 1e-12)).sum()) + 1, len(upto))
