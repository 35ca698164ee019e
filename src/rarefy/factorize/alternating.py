# SPDX-License-Identifier: Apache-2.0
"""Separable kernels by alternating least squares, on the weights or on the layer's outputs.

Jaderberg, Vedaldi, Zisserman: Speeding up Convolutional Neural Networks with Low Rank Expansions, 2014,
arXiv 1405.3866, scheme 2: k x 1 to K maps, then 1 x k; filter reconstruction (equation 4) with the rank
fixed in the place of a nuclear norm, or data reconstruction (equation 7). Each half step solves its linear
least squares, so the error never rises; on the weights it ends where the closed form of Tai et al. begins.
"""

import torch
from torch import Tensor

from rarefy.factorize.decomposition import Ranks
from rarefy.factorize.kernel import Shape
from rarefy.factorize.split import Spatial, balanced
from rarefy.loops.ridge import ridge_solve

CLOSE = 1e-9  # relative change of the error at which the alternation ends
CONJUGATE = 12  # steps of conjugate gradients in a half step


def alternate_on_weights(M: Tensor, P: Tensor, sweeps: int) -> tuple[Tensor, Tensor, list[float]]:
    """P (groups, m, K) and Q (groups, K, n) with P Q near M, improved in turns.

    Args:
        M: (groups, m, n), float64.
        P: where to start.
        sweeps: at most.

    Returns:
        P, Q and the squared error after each sweep.
    """
    errors: list[float] = []
    for _ in range(sweeps):
        Q = ridge_solve(P.mT @ P, P.mT @ M)
        P = ridge_solve(Q @ Q.mT, Q @ M.mT).mT
        errors.append(float((M - P @ Q).square().sum()))
        if len(errors) > 1 and errors[-2] - errors[-1] <= CLOSE * float(M.square().sum()):
            break
    return P, Q, errors


def weighted(X: Tensor, C: Tensor) -> Tensor:
    """X C for X (g, a, j, o) over the windows (a, j), and C (g, a, j, a', j')."""
    return torch.einsum("gajo,gajbk->gbko", X, C)


def alternate_on_outputs(
    M: Tensor, C: Tensor, P: Tensor, sweeps: int
) -> tuple[Tensor, Tensor, list[float]]:
    """P (g, a, K) and Q (g, K, j, o) whose product has outputs near those of M, improved in turns.

    Args:
        M: (g, a, j, o) kernel: inputs and left positions, right positions, outputs; float64.
        C: (g, a, j, a, j) second moment of the inputs in the windows.
        P: where to start.
        sweeps: at most.

    Returns:
        P, Q and the expected squared error of the outputs after each sweep.
    """
    g, a, j, o = M.shape
    K, errors = P.shape[-1], list[float]()
    target = weighted(M, C)
    energy = float((M * target).sum())
    for _ in range(sweeps):
        near = torch.einsum("gak,gajbl->gkjbl", P, C)
        gram = torch.einsum("gkjbl,gbh->gkjhl", near, P).reshape(g, K * j, K * j)
        right = torch.einsum("gak,gajo->gkjo", P, target).reshape(g, K * j, o)
        Q = ridge_solve(gram, right).reshape(g, K, j, o)
        P = left_by_gradients(P, Q, C, target)
        rest = M - torch.einsum("gak,gkjo->gajo", P, Q)
        errors.append(float((rest * weighted(rest, C)).sum()))
        if len(errors) > 1 and errors[-2] - errors[-1] <= CLOSE * energy:
            break
    return P, Q, errors


def left_by_gradients(P: Tensor, Q: Tensor, C: Tensor, target: Tensor) -> Tensor:
    """The first factor that fits the outputs with the second one given, by conjugate gradients from P."""

    def curvature(X: Tensor) -> Tensor:
        made = weighted(torch.einsum("gak,gkjo->gajo", X, Q), C)
        return torch.einsum("gajo,gkjo->gak", made, Q)

    rest = torch.einsum("gajo,gkjo->gak", target, Q) - curvature(P)
    step, size = rest, rest.square().sum((1, 2), keepdim=True)
    first = size
    for _ in range(CONJUGATE):
        if bool((size <= 1e-20 * first).all()):
            break
        turned = curvature(step)
        length = size / (step * turned).sum((1, 2), keepdim=True).clamp(min=1e-300)
        P, rest = P + length * step, rest - length * turned
        size, old = rest.square().sum((1, 2), keepdim=True), size
        step = rest + size / old.clamp(min=1e-300) * step
    return P


class SpatialAlternating(Spatial):
    """k x 1, then 1 x k, by alternating least squares: from a random start on the weights, from the closed
    form on the outputs.
    """

    @classmethod
    def window(cls, shape: Shape) -> tuple[int, ...]:
        """All axes: the outputs depend on pairs of any two positions."""
        return tuple(range(len(shape.space)))

    @property
    def left_moment(self) -> Tensor:
        """Second moment over the inputs and the left positions, (groups, a, a)."""
        assert self.moment is not None
        a = self.matrix.shape[1]
        return torch.einsum("gajbj->gab", self.moment.reshape(len(self.moment), a, -1, a,
                            self.moment.shape[-1] // a))  # fmt: skip

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The two pieces' weights."""
        M, K = self.matrix.double(), ranks[0]
        if self.moment is None:
            draw = torch.Generator().manual_seed(self.seed)
            start = torch.randn(*M.shape[:2], K, generator=draw, dtype=M.dtype).to(M.device)
            P, Q, _ = alternate_on_weights(M, start, self.sweeps)
            return self.shaped(*balanced(P, Q), ranks)
        g, a, n = M.shape
        j = n // self.shape.outputs
        closed = super().weights(ranks)[0].double()  # (g K, inputs, left window)
        start = closed.reshape(g, K, a).mT
        windows = self.moment.reshape(g, a, j, a, j)
        P, Q, _ = alternate_on_outputs(M.reshape(g, a, j, -1), windows, start, self.sweeps)
        return self.shaped(*balanced(P, Q.reshape(g, K, n)), ranks)
