# SPDX-License-Identifier: Apache-2.0
"""Sums of separable terms: CP by alternating least squares, and separable basis filters.

Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky: Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition, 2015, arXiv 1412.6553: 1 x 1, then depthwise along each axis of the window, then 1 x 1.
Jaderberg, Vedaldi, Zisserman 2014, arXiv 1405.3866, scheme 1: M separable filters for each input channel,
which is a CP decomposition of every channel's filters by itself.
"""

import math
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from rarefy.factorize.decomposition import (
    Decomposition,
    Ranks,
    Rule,
    Side,
    Spectrum,
    mixing,
    whitened,
)
from rarefy.factorize.kernel import Shape
from rarefy.factorize.pieces import Piece, along
from rarefy.factorize.tucker import leading_left
from rarefy.loops.ridge import ridge_solve

CLOSE = 1e-7  # relative change of the error at which the sweeps end
LETTERS = "abcdef"


def products(factors: list[Tensor], leave: int) -> Tensor:
    """(B, R, R) elementwise product of all factors' Gram matrices but one."""
    grams = [f.mT @ f for at, f in enumerate(factors) if at != leave]
    return torch.stack(grams).prod(0)


def against(X: Tensor, factors: list[Tensor], leave: int) -> Tensor:
    """(B, n, R): the tensor contracted with all factors but one, component by component."""
    # the longest axes go first, so that what is left is small
    order = sorted(
        (i for i in range(len(factors)) if i != leave), key=lambda i: -factors[i].shape[1]
    )
    axes, out = LETTERS[: len(factors)], X
    left, ranked = list(axes), ""
    for i in order:
        now = "".join(left)
        left.remove(axes[i])
        out = torch.einsum(f"z{now}{ranked},z{axes[i]}r->z{''.join(left)}r", out, factors[i])
        ranked = "r"
    return out


def start_of(X: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Leading singular vectors of each unfolding, filled up with noise where the rank is larger."""
    draw, factors = torch.Generator().manual_seed(seed), []
    for axis in range(1, X.dim()):
        M = X.movedim(axis, 1).flatten(2)
        k = min(rank, M.shape[1])
        noise = torch.randn(len(M), M.shape[1], rank - k, generator=draw, dtype=M.dtype)
        noise = noise.to(M.device) / math.sqrt(M.shape[1])
        factors.append(torch.cat([leading_left(M, k), noise], -1))
    return factors


def cp(X: Tensor, rank: int, sweeps: int, seed: int) -> tuple[list[Tensor], list[float]]:
    """Factors (B, n_i, rank) whose sum of outer products is near X, by alternating least squares.

    Args:
        X: (B, n_1, …, n_d), float64; every entry of B is fitted by itself.
        rank: number of components.
        sweeps: at most.
        seed: of the start's random part.

    Returns:
        The factors, all but the last with unit columns, and the squared error after each sweep, which never
        rises.
    """
    factors, errors = start_of(X, rank, seed), list[float]()
    energy = float(X.square().sum())
    last = len(factors) - 1
    for _ in range(sweeps):
        for axis in range(len(factors)):
            right = against(X, factors, axis)
            found = ridge_solve(products(factors, axis), right.mT).mT
            if axis < last:
                found = found / found.norm(dim=1, keepdim=True).clamp(min=1e-30)
            factors[axis] = found
        made = (factors[last] * right).sum()
        own = (products(factors, last) * (factors[last].mT @ factors[last])).sum()
        errors.append(float(energy - 2 * made + own))
        if len(errors) > 1 and errors[-2] - errors[-1] <= CLOSE * energy:
            break
    return factors, errors


def runs(shape: Shape) -> list[tuple[int, ...]]:
    """The window's axes, one run for each axis longer than 1; the others stay with the one before."""
    wide = shape.wide
    starts = [0, *wide[1:]]
    ends = [*wide[1:], len(shape.space)]
    return [tuple(range(a, b)) for a, b in zip(starts, ends, strict=True)]


def spread(factors: list[Tensor]) -> list[Tensor]:
    """The same components with one norm in all factors."""
    norms = torch.stack([f.norm(dim=1, keepdim=True).clamp(min=1e-30) for f in factors])
    common = norms.log().mean(0).exp()
    return [f / n * common for f, n in zip(factors, norms, strict=True)]


class CP(Decomposition):
    """1 x 1 to R channels, depthwise along every axis of the window, 1 x 1; the rank is R."""

    @cached_property
    def white(self) -> tuple[Tensor, Tensor | None]:
        """The kernel over whitened inputs, and what whitens."""
        return whitened(self.kernel, self.moment)

    @property
    def full(self) -> Ranks:
        """The rank that any tensor of these sizes can reach: their product without the longest."""
        sizes = (self.shape.outputs, self.shape.inputs, *self.shape.space)
        return (math.prod(sizes) // max(sizes),)

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the two channel modes."""
        kernel = self.white[0]
        found = []
        for M in (kernel.transpose(1, 2).flatten(2), kernel.flatten(2)):
            gram = M @ M.mT
            squares = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
            found.append(Spectrum(squares, (M.shape[1], M.shape[2])))
        return tuple(found)

    def ranks_by(self, rule: Rule) -> Ranks:
        """The largest rank that the rule finds in an unfolding; a CP rank is at least that."""
        return (max(1, min(max(rule(s) for s in self.spectra()), self.full[0])),)

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The chain."""
        G, O, C, space = self.shape
        R = G * ranks[0]
        deep = [Piece(R, R, along(space, axes), axes, R) for axes in runs(self.shape)]
        return (mixing(self.shape, ranks[0], C), *deep, mixing(self.shape, O, ranks[0]))

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """One weight for each piece."""
        kernel, whiten = self.white
        wide = [kernel.shape[3 + axis] for axis in self.shape.wide]
        X = kernel.double().reshape(*kernel.shape[:3], *wide)
        (B, A, *windows), _ = cp(X, ranks[0], self.sweeps, self.seed)
        B, A, *windows = spread([B, A, *windows])
        first = A.mT if whiten is None else A.mT @ whiten.to(A.dtype)
        found = [first, *(w.mT for w in windows), B]
        sizes = [piece.size for piece in self.pieces(ranks)]
        return [w.reshape(size).to(self.kernel.dtype) for w, size in zip(found, sizes, strict=True)]


class Separable(Decomposition):
    """M separable filters for each input channel, then 1 x 1; the rank is M."""

    side: ClassVar[Side] = "none"

    @property
    def full(self) -> Ranks:
        """The rank that any filters of a channel can reach."""
        sizes = (self.shape.outputs, *(self.shape.space[a] for a in self.shape.wide))
        return (math.prod(sizes) // max(sizes),)

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the windows' first axis, over all channels of a group together."""
        M = self.kernel.movedim(3 + self.shape.wide[0], 1).flatten(2)
        squares = torch.linalg.eigvalsh(M @ M.mT).flip(-1).clamp(min=0)
        return (Spectrum(squares, (M.shape[1], M.shape[2])),)

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The chain."""
        G, O, C, space = self.shape
        inputs, deep = G * C, []
        for axes in runs(self.shape):
            made = G * C * ranks[0]
            deep.append(Piece(made, inputs, along(space, axes), axes, inputs))
            inputs = made
        return (*deep, mixing(self.shape, O, C * ranks[0]))

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """One weight for each piece."""
        G, O, C, _ = self.shape
        wide = [self.kernel.shape[3 + axis] for axis in self.shape.wide]
        X = self.kernel.double().transpose(1, 2).reshape(G * C, O, *wide)
        (B, *windows), _ = cp(X, ranks[0], self.sweeps, self.seed)
        B, *windows = spread([B, *windows])
        combine = B.reshape(G, C, O, ranks[0]).permute(0, 2, 1, 3)  # (G, O, C, M)
        found = [*(w.mT for w in windows), combine]
        sizes = [piece.size for piece in self.pieces(ranks)]
        return [w.reshape(size).to(self.kernel.dtype) for w, size in zip(found, sizes, strict=True)]
