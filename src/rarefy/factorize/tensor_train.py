# SPDX-License-Identifier: Apache-2.0
"""Tensor trains: of convolutions over (inputs, window, outputs), of matrices over folded rows and columns.

Oseledets: Tensor-Train Decomposition, 2011, algorithm 1 (TT-SVD); Novikov, Podoprikhin, Osokin, Vetrov:
Tensorizing Neural Networks, 2015, arXiv 1509.06569 (matrices). The squared error is at most the sum of the
squared singular values that the unfoldings drop.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from rarefy.factorize.canonical import runs
from rarefy.factorize.decomposition import (
    Decomposition,
    Ranks,
    Side,
    Spectrum,
    mixing,
    whitened,
)
from rarefy.factorize.fold import Fold, Offset
from rarefy.factorize.pieces import Piece, along, put
from rarefy.factorize.truncate import eigenbasis
from rarefy.factorize.tucker import leading_left


def tt_svd(X: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Cores (B, r_{k-1}, n_k, r_k) whose train is near X (B, n_1, …, n_d), r_0 = r_d = 1.

    Args:
        X: every entry of B is decomposed by itself.
        ranks: r_1 … r_{d-1}, each at most r_{k-1} n_k.
    """
    cores, before = [], 1
    rest = X.flatten(1)
    for n, r in zip(X.shape[1:-1], ranks, strict=True):
        M = rest.reshape(len(X), before * n, -1)
        basis = leading_left(M, r)
        cores.append(basis.reshape(len(X), before, n, r))
        rest, before = basis.mT @ M, r
    return [*cores, rest.reshape(len(X), before, X.shape[-1], 1)]


def train_limits(sizes: Sequence[int]) -> Ranks:
    """The ranks at which a train over axes of these sizes is exact."""
    total = math.prod(sizes)
    near = [math.prod(sizes[: k + 1]) for k in range(len(sizes) - 1)]
    return tuple(min(n, total // n) for n in near)


def reachable(ranks: Sequence[int], sizes: Sequence[int]) -> Ranks:
    """Ranks lowered to what the one before can feed: r_k ≤ r_{k-1} n_k."""
    found, before = [], 1
    for rank, n in zip(ranks, sizes[:-1], strict=True):
        before = min(rank, before * n)
        found.append(before)
    return tuple(found)


def train_spectra(X: Tensor) -> tuple[Spectrum, ...]:
    """Squared singular values of all unfoldings of (B, n_1, …, n_d)."""
    found = []
    for k in range(2, X.dim()):
        M = X.flatten(k).flatten(1, k - 1)
        M = M if M.shape[1] <= M.shape[2] else M.mT
        found.append(Spectrum(eigenbasis(M @ M.mT)[0], (M.shape[1], M.shape[2])))
    return tuple(found)


class TensorTrain(Decomposition):
    """1 x 1, a full convolution along every axis of the window, 1 x 1; ranks stand between them."""

    @cached_property
    def white(self) -> tuple[Tensor, Tensor | None]:
        """The kernel over whitened inputs, and what whitens."""
        return whitened(self.kernel, self.moment)

    @cached_property
    def tensor(self) -> Tensor:
        """(groups, inputs, window's wide axes, outputs)."""
        kernel = self.white[0].movedim(1, -1)
        wide = [self.shape.space[a] for a in self.shape.wide]
        return kernel.reshape(self.shape.groups, self.shape.inputs, *wide, self.shape.outputs)

    @property
    def full(self) -> Ranks:
        """The ranks of an exact train."""
        return train_limits(self.tensor.shape[1:])

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the unfoldings."""
        return train_spectra(self.tensor)

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The chain."""
        G, O, C, space = self.shape
        ranks = reachable(ranks, self.tensor.shape[1:])
        middle = [
            Piece(G * after, G * before, along(space, axes), axes, G)
            for before, after, axes in zip(ranks, ranks[1:], runs(self.shape), strict=False)
        ]
        return (mixing(self.shape, ranks[0], C), *middle, mixing(self.shape, O, ranks[-1]))

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The cores as kernels."""
        cores = tt_svd(self.tensor, reachable(ranks, self.tensor.shape[1:]))
        whiten = self.white[1]
        first = cores[0][:, 0].mT
        first = first if whiten is None else first @ whiten.to(first.dtype)
        middle = [core.permute(0, 3, 1, 2) for core in cores[1:-1]]
        found = [first, *middle, cores[-1][..., 0].mT]
        sizes = [piece.size for piece in self.pieces(ranks)]
        return [w.reshape(size).to(self.kernel.dtype) for w, size in zip(found, sizes, strict=True)]


def near_equal(n: int, parts: int) -> tuple[int, ...]:
    """Factors of n as alike as its divisors allow, rising: 784 in 2 gives (28, 28)."""
    if parts == 1:
        return (n,)
    wish = round(n ** (1 / parts))
    first = next(d for d in range(max(wish, 1), 0, -1) if n % d == 0)
    return tuple(sorted((first, *near_equal(n // first, parts - 1))))


class TensorTrainMatrix(Decomposition):
    """A linear layer as a train of small ones over folded features; ranks stand between them."""

    side: ClassVar[Side] = "none"

    @cached_property
    def folds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How outputs and inputs are folded."""
        parts = 3 if min(self.shape.outputs, self.shape.inputs) >= 64 else 2
        return near_equal(self.shape.outputs, parts), near_equal(self.shape.inputs, parts)[::-1]

    @cached_property
    def tensor(self) -> Tensor:
        """(1, m_1 n_1, …, m_d n_d)."""
        m, n = self.folds
        d = len(m)
        order = [axis for k in range(d) for axis in (k, d + k)]
        X = self.kernel[0].reshape(*m, *n).permute(order)
        return X.reshape(1, *(a * b for a, b in zip(m, n, strict=True)))

    @property
    def full(self) -> Ranks:
        """The ranks of an exact train."""
        return train_limits(self.tensor.shape[1:])

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the unfoldings."""
        return train_spectra(self.tensor)

    def steps(self, ranks: Ranks) -> list[tuple[int, int, int, int, int, int]]:
        """For every core: outputs done before it, r_{k-1}, m_k, n_k, r_k, inputs still to come."""
        m, n = self.folds
        chain = (1, *reachable(ranks, self.tensor.shape[1:]), 1)
        return [
            (math.prod(m[:k]), chain[k], m[k], n[k], chain[k + 1], math.prod(n[k + 1 :]))
            for k in range(len(m))
        ]

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """One linear layer a core, applied to all that is folded beside it."""
        return tuple(
            Piece(m * after, before * n, repeats=done * rest)
            for done, before, m, n, after, rest in self.steps(ranks)
        )

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The cores as matrices (m_k r_k, r_{k-1} n_k)."""
        cores = tt_svd(self.tensor, reachable(ranks, self.tensor.shape[1:]))
        found = []
        for core, (_, before, m, n, after, _) in zip(cores, self.steps(ranks), strict=True):
            split = core[0].reshape(before, m, n, after)
            found.append(split.permute(1, 3, 0, 2).reshape(m * after, before * n))
        return [w.to(self.kernel.dtype) for w in found]

    def dense(self, ranks: Ranks, weights: Sequence[Tensor]) -> Tensor:
        """The matrix that the train makes, (1, outputs, inputs)."""
        total = torch.ones(1, 1, 1, dtype=weights[0].dtype, device=weights[0].device)
        for weight, (done, before, m, n, after, _) in zip(weights, self.steps(ranks), strict=True):
            core = weight.reshape(m, after, before, n)
            total = torch.einsum("oib,mabn->omina", total, core).reshape(done * m, -1, after)
        return total[..., 0].unsqueeze(0)

    def build(
        self,
        module: nn.Module,
        ranks: Ranks,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        norms: bool = False,
    ) -> nn.Sequential:
        """Linear layers with what folds features between them; a bias is added at the end."""
        held: Tensor = module.weight  # type: ignore[assignment]
        steps = self.steps(ranks)
        n, rest = steps[0][3], steps[0][5]
        layers: list[nn.Module] = [Fold(1, (n, rest), (1, 0), (1, rest, n))]
        for k, (weight, (done, before, m, n, after, _)) in enumerate(
            zip(weights, steps, strict=True)
        ):
            linear = nn.Linear(before * n, m * after, bias=False, device="meta")
            put(linear, "weight", weight, held)
            layers.append(linear)  # (done, inputs to come, m r)
            if k + 1 < len(steps):
                _, _, _, n, _, rest = steps[k + 1]
                shape, result = (done, n, rest, m, after), (done * m, rest, after * n)
                layers.append(Fold(3, shape, (0, 3, 2, 4, 1), result))
        layers.append(Fold(3, (self.shape.outputs,), (0,), (self.shape.outputs,)))
        if bias is not None:
            copied = bias.detach().to(held.device, held.dtype).clone()
            layers.append(Offset(nn.Parameter(copied, requires_grad=held.requires_grad)))
        return nn.Sequential(*layers).train(module.training)
