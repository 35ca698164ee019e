# SPDX-License-Identifier: Apache-2.0
"""Tucker-2: a small k x k convolution between two 1 x 1 ones.

Kim, Park, Yoo, Choi, Yang, Shin: Compression of Deep Convolutional Neural Networks for Fast and Low Power
Mobile Applications, 2016, arXiv 1511.06530. Factors of the two channel modes start as leading singular
vectors (HOSVD) and are improved in turns (HOOI; De Lathauwer, De Moor, Vandewalle: On the best rank-1 and
rank-(R1, …, RN) approximation of higher-order tensors, 2000).
"""

from functools import cached_property

import torch
from torch import Tensor

from rarefy.factorize.decomposition import Decomposition, Ranks, Spectrum, mixing, whitened
from rarefy.factorize.pieces import Piece
from rarefy.factorize.truncate import Directions

CLOSE = 1e-6  # relative change of the core's energy at which the sweeps end


def unfoldings(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel (groups, O, C, *space) as (groups, C, rest) and (groups, O, rest)."""
    return kernel.transpose(1, 2).flatten(2), kernel.flatten(2)


def leading_left(M: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors (groups, m, k) of (groups, m, n)."""
    shorter = min(M.shape[1:]), max(M.shape[1:])
    if M.shape[1] <= M.shape[2]:
        return Directions(lambda t: M.to(t) @ M.to(t).mT, M.dtype, shorter[::-1]).leading(k)
    right = Directions(lambda t: M.to(t).mT @ M.to(t), M.dtype, shorter[::-1])
    small = M @ right.leading(min(k, M.shape[2])).to(M.dtype)
    return (
        torch.linalg.qr(small).Q if k <= M.shape[2] else torch.linalg.qr(M, "complete").Q[..., :k]
    )


def tucker2(
    kernel: Tensor, start: tuple[Tensor, Tensor], sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal A (groups, C, r), B (groups, O, s) and core (groups, s, r, X) near a kernel.

    Args:
        kernel: (groups, O, C, X).
        start: A and B of the HOSVD.
        sweeps: of improvement, at most; 0 leaves the HOSVD.
    """
    A, B = start
    before = -1.0
    core = torch.einsum("gocx,gos,gcr->gsrx", kernel, B, A)
    if A.shape[1] == A.shape[2] and B.shape[1] == B.shape[2]:
        return A, B, core
    for _ in range(sweeps):
        held = float(core.square().sum())
        if held - before <= CLOSE * held:
            break
        before = held
        A = leading_left(torch.einsum("gocx,gos->gcsx", kernel, B).flatten(2), A.shape[2])
        B = leading_left(torch.einsum("gocx,gcr->gorx", kernel, A).flatten(2), B.shape[2])
        core = torch.einsum("gocx,gos,gcr->gsrx", kernel, B, A)
    return A, B, core


class Tucker(Decomposition):
    """1 x 1 to r channels, k x k to s channels, 1 x 1; ranks are (r, s)."""

    @cached_property
    def white(self) -> tuple[Tensor, Tensor | None]:
        """The kernel over whitened inputs, and what whitens."""
        return whitened(self.kernel, self.moment)

    @cached_property
    def modes(self) -> tuple[Directions, Directions]:
        """Leading directions of inputs and outputs."""
        return tuple(directions_of(M) for M in unfoldings(self.white[0]))  # type: ignore[return-value]

    @property
    def full(self) -> Ranks:
        """As many as channels."""
        return (self.shape.inputs, self.shape.outputs)

    def spectra(self) -> tuple[Spectrum, ...]:
        """Of the two channel modes."""
        return tuple(Spectrum(d.squares, d.shape) for d in self.modes)

    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The three pieces."""
        G, O, C, space = self.shape
        r, s = ranks
        axes = tuple(range(len(space)))
        return (
            mixing(self.shape, r, C),
            Piece(G * s, G * r, space, axes, G),
            mixing(self.shape, O, s),
        )

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The three pieces' weights."""
        kernel, whiten = self.white
        start = tuple(d.leading(k) for d, k in zip(self.modes, ranks, strict=True))
        A, B, core = tucker2(kernel.flatten(3), start, self.sweeps)  # type: ignore[arg-type]
        first = A.mT if whiten is None else A.mT @ whiten
        shaped = (first, core, B)
        sizes = (piece.size for piece in self.pieces(ranks))
        return [
            w.reshape(size).to(self.kernel.dtype) for w, size in zip(shaped, sizes, strict=True)
        ]


def directions_of(M: Tensor) -> Directions:
    """Left singular directions of (groups, m, n)."""
    m, n = M.shape[1:]
    return Directions(lambda t: M.to(t) @ M.to(t).mT, M.dtype, (m, n))
