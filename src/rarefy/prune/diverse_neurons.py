# SPDX-License-Identifier: Apache-2.0
"""A diverse subset of units is drawn from a determinantal point process; the others are fused into it.

Mariet, Sra: Diversity Networks: Neural Network Compression Using Determinantal Point Processes, 2016,
arXiv 1511.05077: kernel (equation 1), sampling (section 2.2), fusing (equation 2). Drawing k of n follows
Kulesza, Taskar: k-DPPs: Fixed-Size Determinantal Point Processes, 2011.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.loops.ridge import ridge_solve
from rarefy.prune.readers import Reader
from rarefy.prune.reconstruction import Reconstruction, Samples
from rarefy.step import Context, Positive


def similarity_kernel(V: Tensor, beta: float, damping: float = 0.01) -> Tensor:
    """L_ij = exp(-beta |v_i - v_j|²) + damping · (i = j).

    Args:
        V: activations of the units over the data, (units, samples).
        beta: inverse width; the paper takes 10 / samples.
        damping: added to the diagonal so that L can be inverted.
    """
    squares = V.square().sum(1)
    distances = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * V @ V.mT).clamp(min=0)
    L = torch.exp(-beta * distances).fill_diagonal_(1)
    return L + damping * torch.eye(len(L)).to(L)


def elementary_symmetric(values: Tensor, k: int) -> Tensor:
    """Logarithms of the elementary symmetric polynomials of the first m values, up to degree k.

    Args:
        values: (n,), none negative.
        k: highest degree.

    Returns:
        E with E[l, m] = log e_l(values[:m]), (k + 1, n + 1); sums of up to n choose k products stay in range.
    """
    n = len(values)
    logs = values.clamp(min=0).log()
    E = torch.full((k + 1, n + 1), -torch.inf, dtype=values.dtype)
    E[0] = 0
    for m in range(1, n + 1):
        E[1:, m] = torch.logaddexp(E[1:, m - 1], logs[m - 1] + E[:-1, m - 1])
    return E


def sample_k_dpp(L: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draws k of n items with probability det(L_Y) / e_k(eigenvalues of L).

    Args:
        L: (n, n), symmetric, positive semidefinite, of rank k at least.
        k: how many.
        generator: of the draw.

    Returns:
        (k,) items, rising.
    """
    values, vectors = torch.linalg.eigh(L)
    values = values.masked_fill(values < 1e-12 * values.max(), 0)
    E, chosen, left = elementary_symmetric(values, k), [], k
    for m in range(len(values), 0, -1):
        if not left:
            break
        share = (values[m - 1].log() + E[left - 1, m - 1] - E[left, m]).exp()
        if float(torch.rand((), generator=generator, dtype=torch.float64)) < float(share):
            chosen.append(m - 1)
            left -= 1
    V = vectors[:, chosen]  # (n, k), orthonormal
    items: list[int] = []
    while V.shape[1]:
        weights = V.square().sum(1)
        weights[items] = 0
        item = int(torch.multinomial(weights, 1, generator=generator))
        items.append(item)
        pivot = int(V[item].abs().argmax())
        V = V - V[:, pivot : pivot + 1] * (V[item] / V[item, pivot])
        V = torch.cat([V[:, :pivot], V[:, pivot + 1 :]], 1)
        V = torch.linalg.qr(V).Q if V.shape[1] else V
    return torch.tensor(sorted(items))


def fusion(V: Tensor, survivors: Tensor, pruned: Tensor, damping: float = 1e-8) -> Tensor:
    """A that minimises |V_P - A V_S| over the data, (pruned, survivors).

    Args:
        V: activations, (units, samples).
        survivors, pruned: numbers of units.
        damping: of the least squares, as a share of the mean square of the survivors.
    """
    S, P = V[survivors], V[pruned]
    return ridge_solve(S @ S.mT, S @ P.mT, damping).mT


def fuse(W: Tensor, columns: Tensor, A: Tensor, survivors: Tensor, pruned: Tensor) -> Tensor:
    """The weight of the next layer with what it read of the pruned units read off the survivors.

    Args:
        W: (out, in).
        columns: of each unit, (units, m).
        A: see `fusion`.
        survivors, pruned: numbers of units.
    """
    fused = W.clone()
    fused[:, columns[survivors]] += torch.einsum("opm,ps->osm", W[:, columns[pruned]], A)
    fused[:, columns[pruned]] = 0
    return fused


@dataclass(frozen=True)
class DiverseNeurons(Reconstruction):
    """Keeps a random diverse subset of the neurons, as their activations tell, and fuses the others into it.

    Attributes:
        sparsity, round_to, examples, samples, layers, exclude: see
            `rarefy.prune.reconstruction.Reconstruction`.
        beta: inverse width of the kernel, times the number of samples.
        damping: added to the kernel's diagonal.
        fusing: whether survivors take over what the others gave.
    """

    beta: Positive = 10.0
    damping: Annotated[float, Field(ge=0)] = 0.01
    fusing: bool = True

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Draws, fuses and cuts, one layer after the other."""
        generator = torch.Generator().manual_seed(context.seed)
        samples = Samples(self, context)

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            rows = samples.rows(model, readers)
            V = [r.activations(x).mT for r, x in zip(readers, rows, strict=True)]
            survivors = self.draw(V, group.size - number, generator)
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[survivors] = False
            pruned = gone.nonzero()[:, 0]
            if self.fusing:
                for reader, v in zip(readers, V, strict=True):
                    A = fusion(v, survivors, pruned)
                    reader.put(fuse(reader.matrix, reader.columns, A, survivors, pruned))
            return pruned

        return self.prune(model, context, self.cutting(choose))

    def draw(self, V: Sequence[Tensor], k: int, generator: torch.Generator) -> Tensor:
        """The units that survive; alike ones are seldom drawn together."""
        values = torch.cat(list(V), 1).cpu()
        L = similarity_kernel(values, self.beta / values.shape[1], self.damping)
        return sample_k_dpp(L, k, generator)
