# SPDX-License-Identifier: Apache-2.0
"""Penalties that make weights, or whole groups of them, small while a network trains; their proximal maps.

The proximal map of t · p at w is argmin_u ½‖u - w‖² + t · p(u). Taken after a gradient step of length r with
t = r · strength, it leaves exact zeros where a subgradient only oscillates around them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor, float], Tensor]


def l1(w: Tensor) -> Tensor:
    """Σ|w|; its subgradient is sign(w), 0 at 0."""
    return w.abs().sum()


def l1_prox(w: Tensor, t: float) -> Tensor:
    """sign(w) · max(|w| - t, 0): the soft threshold, proximal map of t Σ|w|."""
    return w.sign() * (w.abs() - t).clamp(min=0)


def l2(w: Tensor) -> Tensor:
    """½ Σ w², what weight decay descends."""
    return 0.5 * w.square().sum()


def l2_prox(w: Tensor, t: float) -> Tensor:
    """w / (1 + t), the proximal map of t/2 · Σ w²: smaller for every t, zero for none."""
    return w / (1 + t)


@dataclass(frozen=True)
class Part:
    """What a group has in one parameter.

    Attributes:
        tensor: the parameter.
        owners: the group of each of its entries, -1 for none, in a shape that broadcasts to the parameter's.
    """

    tensor: Tensor
    owners: Tensor

    def gains(self, by_group: Tensor) -> Tensor:
        """A number for each group as a factor for each entry, 1 where there is no group."""
        spread = torch.cat([by_group, by_group.new_ones(1)])  # -1 is the last
        return spread[self.owners].to(self.tensor)


def group_squares(parts: Sequence[Part], number: int) -> Tensor:
    """Σ w² of each group over all its parts, (number,); gradients flow."""
    total = torch.zeros(number, dtype=torch.float64)
    for part in parts:
        squares, owners = part.tensor.double().square().cpu(), part.owners
        axes = [i for i, n in enumerate(owners.shape) if n == 1]
        reduced = squares.sum(axes, keepdim=True) if axes else squares
        owned = (owners >= 0).reshape(-1)
        total = total.index_add(0, owners.reshape(-1)[owned], reduced.reshape(-1)[owned])
    return total


def group_sizes(parts: Sequence[Part], number: int) -> Tensor:
    """How many weights each group has, |g|, (number,)."""
    total = torch.zeros(number, dtype=torch.float64)
    for part in parts:
        owned = part.owners.reshape(-1)
        each = part.tensor.numel() / len(owned)
        owned = owned[owned >= 0]
        total.index_add_(0, owned, torch.full((len(owned),), each, dtype=torch.float64))
    return total


def group_lasso(squares: Tensor, sizes: Tensor) -> Tensor:
    """Σ_g sqrt(|g|) · ‖w_g‖₂; the slope of a group that is zero already is 0.

    Yuan, Lin: Model selection and estimation in regression with grouped variables, 2006; Wen, Wu, Wang, Chen,
    Li: Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv 1608.03665, equations 1 to 4.

    Args:
        squares: ‖w_g‖² of each group.
        sizes: |g|.
    """
    living = squares > 0
    return (sizes[living].sqrt() * squares[living].sqrt()).sum()


def group_gains(squares: Tensor, sizes: Tensor, t: float) -> Tensor:
    """max(0, 1 - t · sqrt(|g|) / ‖w_g‖): how the proximal map of t · `group_lasso` scales each group."""
    norms = squares.sqrt()
    return torch.where(norms > 0, 1 - t * sizes.sqrt() / norms.clamp(min=1e-300), 0.0).clamp(min=0)


def grown(progress: float, start: float, ceiling: float, steps: int = 100) -> float:
    """The factor of a growing L2 penalty: 0 until `start`, then in equal steps up to `ceiling` at the end.

    Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, 2021, arXiv 2012.09243, equation 5: a
    factor grows by δ every K steps until it reaches a ceiling τ; `ceiling` is τ and `steps` is τ / δ.

    Args:
        progress: of the training, in [0, 1].
        start: progress at which it begins.
        ceiling: largest factor.
        steps: in which it is reached.
    """
    if progress <= start:
        return 0.0
    done = (progress - start) / (1 - start)
    return ceiling * min(math.ceil(done * steps - 1e-9), steps) / steps
