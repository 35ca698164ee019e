# SPDX-License-Identifier: Apache-2.0
"""Who gives how much: importances of all layers and one budget become one mask a layer.

A layer's scores may count weights or blocks (see `rarefy.prune.granularity`); a negative score marks one
that is gone already and goes first. Counts are exact: round(sparsity · n) units are pruned, over each layer
or over all of them; among equal scores the lower index is kept.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rarefy.prune.threshold import each, keep_most
from rarefy.store.mapped import aside

BLOCK = 1 << 20  # scores that are worked on together
INDEX = (1 << 32) - 1


def keep_largest(scores: Tensor, keep: int) -> Tensor:
    """A mask of the `keep` largest scores, whatever the shape; ties go to the lower index."""
    return keep_most([scores], keep)[0]


def pruned_count(sparsity: float, total: int) -> int:
    """round(sparsity · total)."""
    return round(sparsity * total)


def local(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """The same sparsity in every layer."""
    return [keep_largest(s, s.numel() - pruned_count(sparsity, s.numel())) for s in scores]


def global_(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """One threshold over all layers together."""
    total = sum(s.numel() for s in scores)
    return keep_most(scores, total - pruned_count(sparsity, total))


def lamp_scores(scores: Tensor) -> Tensor:
    """s_i² / Σ_j s_j² over all j that rank at or above i in the layer; the layer's largest scores exactly 1.

    Compared over all layers they prune where the layer's output suffers least. Lee, Park, Mo, Ahn, Shin:
    Layer-adaptive sparsity for the Magnitude-based Pruning, 2021, arXiv 2010.07611, equation 4.
    """
    shares = (
        scores.flatten().float().clamp(min=0).abs_()
    )  # a copy; each is overwritten by its share
    ranked, above = descending(shares), 0.0
    for keys in ranked.split(BLOCK):
        places = keys & INDEX
        squares = shares[places].double().square_()
        from_top = squares.cumsum(0).add_(above)
        above = float(from_top[-1])
        shares[places] = squares.div_(from_top.masked_fill_(from_top <= 0, 1.0)).float()
    return shares.view(scores.shape).masked_fill_(scores < 0, -1.0)


def descending(values: Tensor) -> Tensor:
    """Integers whose low 32 bits are the places of float32 values, none negative, the largest value first.

    Equal values keep their order. The bits of such floats rise with their values, so one sort of value and
    place together does, in half the memory that `torch.argsort` takes.
    """
    keys = values.view(torch.int32).long()
    for i, block in enumerate(keys.split(BLOCK)):
        start = i * BLOCK
        block.neg_().add_(INDEX >> 1).bitwise_left_shift_(32)
        block += torch.arange(start, start + len(block), device=keys.device)
    if keys.device.type != "cpu":
        return keys.sort().values
    keys.numpy().sort()
    return keys


def normalised(scores: Tensor) -> Tensor:
    """Scores divided by their layer's norm, so that layers of another scale can be compared."""
    return in_units(scores, norm(scores))


def norm(scores: Tensor) -> float:
    """The Euclidean norm of the scores that are not negative."""
    return float(scores.double().clamp(min=0).norm())


def in_units(scores: Tensor, unit: float) -> Tensor:
    """Scores as float64 multiples of `unit`, as they are if it is 0; -1 stays for what is gone."""
    return scores.double().div(unit or 1.0).masked_fill_(scores < 0, -1.0)


def deviation(w: Tensor) -> float:
    """The standard deviation of the weights that are not zero."""
    alive = w.detach()[w != 0].double()
    return float(alive.std(correction=0)) if alive.numel() > 1 else 0.0


def std_mask(w: Tensor, quality: float, std: float | None = None) -> Tensor:
    """Keeps |w| ≥ quality · std(w) (Han et al. 2015, arXiv 1506.02626, section 4).

    Args:
        w: any shape.
        quality: the factor q; of a Gaussian layer 2 (1 - Φ(q)) of the weights are kept.
        std: to use in the place of the standard deviation of the non-zero weights.
    """
    return w.detach().abs() >= quality * (deviation(w) if std is None else std)


def erk_densities(
    shapes: Sequence[torch.Size], density: float, sizes: Sequence[int] | None = None
) -> list[float]:
    """Kept shares that grow with Σ axes / Π axes of a layer's shape, capped at 1, and meet the budget.

    Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, 2020, arXiv 1911.11134, section 3 (1).

    Args:
        shapes: of the weights.
        density: share of all units together that is kept.
        sizes: units of each layer; default: its weights.

    Returns:
        One density a layer; Σ density · size is `density` times the size of all.
    """
    sizes = [math.prod(shape) for shape in shapes] if sizes is None else sizes
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    full: set[int] = set()
    while len(full) < len(shapes):
        spare = density * sum(sizes) - sum(sizes[i] for i in full)
        share = sum(raw[i] * sizes[i] for i in range(len(raw)) if i not in full)
        densities = [1.0 if i in full else spare / share * r for i, r in enumerate(raw)]
        highest = max((i for i in range(len(raw)) if i not in full), key=lambda i: densities[i])
        if densities[highest] <= 1:
            return densities
        full.add(highest)
    return [1.0] * len(shapes)


def whole_counts(shares: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Integers near `shares` that add up to `total`, none above its limit (largest remainders first)."""
    counts = [min(math.floor(share), limit) for share, limit in zip(shares, limits, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    while sum(counts) < total:
        for i in order:
            if counts[i] < limits[i] and sum(counts) < total:
                counts[i] += 1
    return counts


def erk(scores: Sequence[Tensor], shapes: Sequence[torch.Size], sparsity: float) -> list[Tensor]:
    """Each layer keeps its Erdős–Rényi-Kernel density; together they prune round(sparsity · n)."""
    sizes = [s.numel() for s in scores]
    kept = sum(sizes) - pruned_count(sparsity, sum(sizes))
    densities = erk_densities(shapes, kept / sum(sizes), sizes)
    wanted = [d * size for d, size in zip(densities, sizes, strict=True)]
    counts = whole_counts(wanted, sizes, kept)
    return [keep_largest(s, count) for s, count in zip(scores, counts, strict=True)]


def allocate(
    allocation: str, scores: Sequence[Tensor], weights: Sequence[Tensor], sparsity: float
) -> list[Tensor]:
    """Masks, True where a unit stays, for the budget `sparsity`.

    Args:
        allocation: ``"local"``, ``"global"``, ``"lamp"``, ``"erk"``, ``"std"`` (scores in units of the
            layer's standard deviation, one factor for all layers) or ``"normalised"`` (by its norm).
        scores: importance of the units of each layer; read layer by layer, several times.
        weights: the layers' weights; their shapes and deviations count, whatever the units are.
        sparsity: share of units to prune, in [0, 1].
    """
    if allocation == "local":
        return local(scores, sparsity)
    if allocation == "erk":
        return erk(scores, [w.shape for w in weights], sparsity)
    if allocation == "lamp":  # sorting is too dear to be done again and again
        return global_([aside(lamp_scores(s)) for s in scores], sparsity)
    if allocation == "global":
        return global_(scores, sparsity)
    if allocation == "std":
        return global_(each(in_units, scores, [deviation(w) for w in weights]), sparsity)
    return global_(each(in_units, scores, [norm(s) for s in scores]), sparsity)
