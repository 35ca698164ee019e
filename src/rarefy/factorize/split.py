# SPDX-License-Identifier: Apache-2.0
"""A kernel in two pieces of rank K: the closed forms behind SVD, channel and spatial factorisation.

The window's axes are split between the pieces. All in the first: k x k to K maps, then 1 x 1 (Denton et al.:
Exploiting Linear Structure Within Convolutional Networks, 2014, arXiv 1404.0736; Zhang, Zou, He, Sun:
Accelerating Very Deep Convolutional Networks, 2015, arXiv 1505.06798), which for linear layers is the SVD.
None: 1 x 1, then k x k. One in each: k x 1, then 1 x k (Tai, Xiao, Zhang, Wang, E: Convolutional neural
networks with low-rank regularization, 2016, arXiv 1511.06067, theorem 1: the global optimum of the fit).

With second moments the fit is that of the outputs. Zhang et al. 2015, equation 4: the K leading principal
directions U of the outputs give U Uᵀ W, which no other rank-K fit beats on the same inputs.
"""

import math
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from rarefy.factorize.decomposition import (
    Decomposition,
    Ranks,
    Side,
    Spectrum,
    root_and_inverse,
)
from rarefy.factorize.kernel import Shape
from rarefy.factorize.pieces import Piece, along
from rarefy.factorize.truncate import Directions


def as_matrix(kernel: Tensor, left: int) -> Tensor:
    """A kernel as (groups, inputs · left positions, right positions · outputs).

    Args:
        kernel: (groups, outputs, inputs, *space).
        left: how many leading axes of the window stand with the inputs.
    """
    G, O, C, *space = kernel.shape
    near, far = math.prod(space[:left]), math.prod(space[left:])
    return kernel.reshape(G, O, C, near, far).permute(0, 2, 3, 4, 1).reshape(G, C * near, far * O)


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (groups, m, k) and (groups, k, n) scaled so that component by component both have one norm."""
    a, b = left.norm(dim=-2).clamp(min=1e-30), right.norm(dim=-1).clamp(min=1e-30)
    scale = torch.where((a > 1e-29) & (b > 1e-29), (b / a).sqrt(), 1.0)
    return left * scale.unsqueeze(-2), right / scale.unsqueeze(-1)


class Split(Decomposition):
    """Two pieces, the window's axes before `left_of(shape)` in the first one."""

    @classmethod
    def left_of(cls, shape: Shape) -> int:
        """How many leading axes of the window the first piece handles."""
        return 0

    @classmethod
    def window(cls, shape: Shape) -> tuple[int, ...]:
        """The axes of the first piece."""
        return cls.near(shape)

    @classmethod
    def near(cls, shape: Shape) -> tuple[int, ...]:
        """The axes of the first piece."""
        return tuple(range(cls.left_of(shape)))

    @cached_property
    def matrix(self) -> Tensor:
        """(groups, inputs · left positions, right positions · outputs)."""
        return as_matrix(self.kernel, self.left_of(self.shape))

    @property
    def sides(self) -> tuple[int, int]:
        """The sides of the matrix of one group."""
        _, O, C, space = self.shape
        left = self.left_of(self.shape)
        return C * math.prod(space[:left]), math.prod(space[left:]) * O

    @property
    def full(self) -> Ranks:
        """The shorter side."""
        return (min(self.sides),)

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the matrix; with a moment, of the outputs that it makes."""
        return (Spectrum(self.directions.squares, self.sides),)

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The two pieces."""
        G, O, C, space = self.shape
        left = self.near(self.shape)
        right = tuple(range(len(left), len(space)))
        K = G * ranks[0]
        return (
            Piece(K, G * C, along(space, left), left, G),
            Piece(G * O, K, along(space, right), right, G),
        )

    @cached_property
    def from_right(self) -> bool:
        """Whether the directions are those of the columns."""
        m, n = self.sides
        return n <= m or (self.moment is not None and self.side == "outputs")

    @property
    def left_moment(self) -> Tensor:
        """Second moment of what the first piece reads, or of the outputs."""
        assert self.moment is not None
        return self.moment

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """Root of the moment and its inverse."""
        return root_and_inverse(self.left_moment)

    @cached_property
    def directions(self) -> Directions:
        """Leading directions of the shorter side."""
        m, n = self.sides
        dtype = self.kernel.dtype if self.moment is None else torch.float64
        return Directions(self.gram, dtype, (max(m, n), min(m, n)))

    def gram(self, dtype: torch.dtype) -> Tensor:
        """The Gram matrix whose eigenvectors are the directions."""
        M = self.matrix.to(dtype)
        if self.moment is None:
            return M.mT @ M if self.from_right else M @ M.mT
        if self.side == "outputs":
            return self.left_moment.to(dtype)
        if self.from_right:
            return M.mT @ self.left_moment.to(dtype) @ M
        seen = self.roots[0].mT.to(dtype) @ M
        return seen @ seen.mT

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The two pieces' weights: P and Q with P Q the best fit of the matrix."""
        basis = self.directions.leading(ranks[0])
        M = self.matrix.to(basis.dtype)
        if self.from_right:
            P, Q = M @ basis, basis.mT
        elif self.moment is None:
            P, Q = basis, basis.mT @ M
        else:
            root, inverse = self.roots
            P, Q = inverse.mT @ basis, basis.mT @ (root.mT @ M)
        return self.shaped(*balanced(P, Q), ranks)

    def shaped(self, P: Tensor, Q: Tensor, ranks: Ranks) -> list[Tensor]:
        """Factors (groups, m, K) and (groups, K, n) as the weights of the pieces."""
        first, second = self.pieces(ranks)
        G, O, _, space = self.shape
        left = self.left_of(self.shape)
        W2 = Q.reshape(G, ranks[0], *space[left:], O).movedim(-1, 1)
        return [
            P.mT.reshape(first.size).to(self.kernel.dtype),
            W2.reshape(second.size).to(self.kernel.dtype),
        ]


class SVD(Split):
    """k x k to K maps, then 1 x 1; for linear layers the truncated singular value decomposition.

    With the outputs' second moment it is the activation-aware one, the best of its rank.
    """

    side: ClassVar[Side] = "outputs"
    exact: ClassVar[bool] = True

    @classmethod
    def left_of(cls, shape: Shape) -> int:
        """All axes."""
        return len(shape.space)


class Channel(Split):
    """1 x 1 to K channels, then k x k."""


class Spatial(Split):
    """k x 1, then 1 x k; a cube is split in its first axis and the two others."""

    @classmethod
    def left_of(cls, shape: Shape) -> int:
        """Up to the first axis that is longer than 1."""
        return shape.wide[0] + 1
