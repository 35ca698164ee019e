# SPDX-License-Identifier: Apache-2.0
"""Neurons with nearly the same weights are merged without any data.

Srinivas, Babu: Data-free Parameter Pruning for Deep Neural Networks, BMVC 2015, arXiv 1507.06149: saliency
(equation 8), surgery and rebuilding (section 3.2). Where `scaled` is set, neurons that are multiples of each
other count as alike, which is exact for ReLU.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rarefy.graph.fold import fold_batch_norms
from rarefy.graph.groups import Group
from rarefy.prune.by_group import Cutting, prune_by_group, share_of
from rarefy.prune.readers import Reader, readers_of
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import move


@dataclass(frozen=True)
class Merger:
    """One neuron that is merged into another.

    Attributes:
        into, gone: numbers of the neurons.
        factor: that what reads `gone` is multiplied with.
        saliency: how much was thought to be lost.
    """

    into: int
    gone: int
    factor: float
    saliency: float


def differences(V: Tensor, scaled: bool = False) -> tuple[Tensor, Tensor]:
    """|W_j - c W_i|² and c for all pairs, (neurons i, neurons j) both.

    Args:
        V: incoming weights with the bias, (neurons, n).
        scaled: whether c may be any positive number; else it is 1.
    """
    products = V @ V.mT
    squares = products.diagonal()
    c = torch.ones_like(products)
    if scaled:
        c = (products / squares.clamp(min=1e-30).unsqueeze(1)).clamp(min=0)
    distances = squares.unsqueeze(0) - 2 * c * products + c.square() * squares.unsqueeze(1)
    exact = distances.clamp(min=0)
    return torch.where(exact < 1e-12 * squares.max(), torch.zeros_like(exact), exact), c


def mergers(V: Tensor, A: Tensor, scaled: bool = False) -> list[Merger]:
    """The order in which neurons are merged until one is left.

    Each time the pair (i, j) with the least ``mean(a_j²) · |W_i - W_j|²`` goes; a_i += a_j changes the
    saliencies in which i could go.

    Args:
        V: incoming weights with the bias, (neurons, n).
        A: outgoing weights, (neurons, m).
        scaled: see `differences`.
    """
    distances, c = differences(V, scaled)
    A, alive = A.clone(), torch.ones(len(V), dtype=torch.bool)
    S = distances * A.square().mean(1)
    S.fill_diagonal_(torch.inf)
    found = []
    for _ in range(len(V) - 1):
        i, j = divmod(int(S.argmin()), len(V))
        found.append(Merger(i, j, float(c[i, j]), float(S[i, j])))
        A[i] += c[i, j] * A[j]
        alive[j] = False
        S[j], S[:, j] = torch.inf, torch.inf
        S[:, i] = torch.where(alive, distances[:, i] * A[i].square().mean(), torch.inf)
        S[i, i] = torch.inf
    return found


def knee(curve: Sequence[float]) -> int:
    """How many mergers come before the saliency curve turns upwards.

    The curve of the sorted saliencies is flattest at the peak of their distribution, and rises ever faster
    behind it. The peak is that of a density estimate with Gaussian kernels (Silverman's width).

    Args:
        curve: saliencies in the order of the mergers.
    """
    if len(curve) < 4:
        return 0
    values = torch.tensor(curve, dtype=torch.float64)
    q = values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    spread = min(float(values.std()), float(q[1] - q[0]) / 1.34) or float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, 1e-30)
    apart = (values.unsqueeze(0) - values.unsqueeze(1)) / width
    peak = values[int(torch.exp(-apart.square() / 2).sum(1).argmax())]
    above = (values > peak).nonzero()
    return int(above[0]) if len(above) else len(values)


def incoming(model: nn.Module, group: Group) -> Tensor:
    """All weights and biases that give each unit, float64, (units, n).

    Args:
        model: whose batch norms have been folded into its layers.
        group: of the network.
    """
    parts = []
    for member in group.members:
        if member.role != "out":
            continue
        path, _, tensor = member.name.rpartition(".")
        module = model.get_submodule(path)
        weight: Tensor = getattr(module, tensor).detach().double().movedim(member.axis, 0)
        order = member.units.argsort(stable=True)
        parts.append(weight[member.places[order]].reshape(group.size, -1))
        bias: Tensor | None = getattr(module, "bias", None)
        if bias is not None and len(bias) == len(weight):
            parts.append(bias.detach().double()[member.places[order]].reshape(group.size, -1))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class SimilarNeurons(Step):
    """Merges neurons and channels whose weights are alike; looks at no data at all.

    Attributes:
        sparsity: share of the units of every group that go; default: as many as come before the knee of the
            group's saliency curve.
        round_to: the number of channels that stay is a multiple of it.
        scaled: whether a neuron may be a positive multiple of another; right for ReLU and its kin alone.
        layers, exclude: whose units go, see `rarefy.select.select`; a group goes if it holds one of
            `layers` and none of `exclude`.
    """

    sparsity: OpenFraction | None = None
    round_to: Count = 1
    scaled: bool = False
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Finds pairs, merges and cuts, one layer after the other."""

        def order(group: Group, readers: list[Reader]) -> list[Merger]:
            folded = copy.deepcopy(model)
            fold_batch_norms(folded, move(context.task.example, context.device))
            A = [r.matrix[:, r.columns].movedim(1, 0).flatten(1) for r in readers]
            return mergers(incoming(folded, group), torch.cat(A, 1), self.scaled)

        def counts(groups: Sequence[Group]) -> dict[str, int]:
            if self.sparsity is not None:
                return dict(share_of(self.sparsity, self.round_to)(groups))
            curves = {g.name: order(g, readers_of(model, g) or []) for g in groups if g.size > 1}
            context.record["saliencies"] = {
                name: [m.saliency for m in found] for name, found in curves.items()
            }
            found = {name: knee([m.saliency for m in curve]) for name, curve in curves.items()}
            return {g.name: rounded(g.size, found.get(g.name, 0), self.round_to) for g in groups}

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            found = order(group, readers)[:number]
            for reader in readers:
                W, columns = reader.matrix, reader.columns
                for m in found:
                    W[:, columns[m.into]] += m.factor * W[:, columns[m.gone]]
                reader.put(W)
            return torch.tensor([m.gone for m in found])

        cutting = Cutting(counts, choose, self.layers, self.exclude)
        return prune_by_group(model, context, cutting, self.key())


def rounded(size: int, gone: int, round_to: int) -> int:
    """How many of `size` units go if the number that stays shall be a multiple of `round_to`."""
    stays = max(size - gone, 1)
    return size - min(-(-stays // round_to) * round_to, size)
