# SPDX-License-Identifier: Apache-2.0
"""What every decomposition offers: possible ranks, the pieces of a rank, and the weights of the pieces."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rarefy.factorize.kernel import Shape, shape_of
from rarefy.factorize.pieces import Piece, build, compose

Ranks: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[["Spectrum"], int]
Side: TypeAlias = Literal["windows", "outputs", "none"]


@dataclass(frozen=True)
class Spectrum:
    """Squared singular values of one unfolding of a kernel.

    Attributes:
        squares: (groups, n), falling.
        shape: sides of the matrix.
    """

    squares: Tensor
    shape: tuple[int, int]


class Decomposition(ABC):
    """One kernel, ready to be factorised at any rank; what does not depend on the rank is computed once.

    Args:
        kernel: (groups, outputs, inputs, *space).
        moment: second moment of what `side` names, or None to fit the weights alone.
        sweeps: of alternating methods, at most.
        seed: of random starts.

    Class attributes:
        side: what the moment is of: ``"windows"`` (inputs seen by the axes of `window`, (groups, inputs ·
            positions, …)), ``"outputs"`` (groups, outputs, outputs), or ``"none"``: it can't use any.
        exact: whether the fit with a moment is the best possible one for the outputs.
    """

    side: ClassVar[Side] = "windows"
    exact: ClassVar[bool] = False

    def __init__(
        self, kernel: Tensor, moment: Tensor | None = None, *, sweeps: int = 20, seed: int = 0
    ) -> None:
        self.kernel, self.shape = kernel, shape_of(kernel)
        self.moment = None if moment is None else moment.double()
        self.sweeps, self.seed = sweeps, seed

    @classmethod
    def window(cls, shape: Shape) -> tuple[int, ...]:
        """The axes of the window whose positions the moment tells apart; leading ones."""
        return ()

    @property
    @abstractmethod
    def full(self) -> Ranks:
        """The ranks at which nothing is lost, or the largest that are of use."""

    @abstractmethod
    def pieces(self, ranks: Ranks) -> tuple[Piece, ...]:
        """The chain at some ranks."""

    @abstractmethod
    def spectra(self) -> tuple[Spectrum, ...]:
        """The spectra on which energy and variational Bayes decide, one for each rank, or more."""

    @abstractmethod
    def weights(self, ranks: Ranks) -> list[Tensor]:
        """A weight for each piece."""

    def ranks_by(self, rule: Rule) -> Ranks:
        """Ranks that a rule reads off the spectra, at least 1 each."""
        return tuple(
            max(1, min(rule(s), n)) for s, n in zip(self.spectra(), self.full, strict=True)
        )

    def at(self, share: float) -> Ranks:
        """Ranks as a share in (0, 1] of the full ones."""
        return tuple(max(1, round(share * n)) for n in self.full)

    def dense(self, ranks: Ranks, weights: Sequence[Tensor]) -> Tensor:
        """The kernel that the pieces make together."""
        return compose(self.shape, self.pieces(ranks), weights)

    def build(
        self,
        module: nn.Module,
        ranks: Ranks,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        norms: bool = False,
    ) -> nn.Sequential:
        """The layers that replace `module`, see `rarefy.factorize.pieces.build`."""
        return build(module, self.pieces(ranks), weights, bias, norms)


def mixing(shape: Shape, outputs: int, inputs: int) -> Piece:
    """A 1 x 1 convolution or linear layer; channels are of one group."""
    G = shape.groups
    return Piece(G * outputs, G * inputs, (1,) * len(shape.space), (), G)


def root_and_inverse(moment: Tensor, floor: float = 1e-9) -> tuple[Tensor, Tensor]:
    """R and R⁺ with R Rᵀ = moment, (groups, n, n) each; directions below `floor` of the largest are dropped.

    What the inputs never show has no influence on the outputs, so dropping it costs nothing on the data.
    """
    values, vectors = torch.linalg.eigh(moment)
    limit = floor * values[..., -1:].clamp(min=1e-300)
    size = values.clamp(min=0).sqrt()
    inverse = torch.where(values > limit, 1 / size.clamp(min=1e-150), 0.0)
    return vectors * size.unsqueeze(-2), inverse.unsqueeze(-1) * vectors.mT


def whitened(kernel: Tensor, moment: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A kernel whose inputs have unit second moment, and what turns inputs into these.

    Returns:
        The kernel in terms of the whitened inputs and T (groups, n, inputs) with T T^-1 = 1: the first weight
        (groups, rank, n) of a chain for it, times T, reads the real inputs. T is None without a moment.
    """
    if moment is None:
        return kernel, None
    root, inverse = root_and_inverse(moment)
    flat = torch.einsum("gocx,gcd->godx", kernel.flatten(3).to(root.dtype) if kernel.dim() > 3 else
                        kernel.unsqueeze(-1).to(root.dtype), root)  # fmt: skip
    return flat.reshape(*kernel.shape[:2], root.shape[-1], *kernel.shape[3:]), inverse
