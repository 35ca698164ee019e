# SPDX-License-Identifier: Apache-2.0
"""A layer's filters as mixtures of a few representative ones: k filters, then a 1 x 1 layer that mixes them.

Dubey, Chatterjee, Ahuja: Coreset-Based Neural Network Compression, ECCV 2018, arXiv 1807.09810: the n filters
of a layer are points, of which a k-means coreset keeps k (section 3.2); activation weighting measures
distances by what a difference does at the outputs (section 3.3). The mixture is the least-squares one.
No training.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rarefy.loops.blocks import put_module
from rarefy.loops.walk import walk
from rarefy.measure.quality import batches_of
from rarefy.quantize.row_gains import moments_of
from rarefy.select import select
from rarefy.step import Context, Count, Fraction, Patterns, Step

ITERATIONS = 50
DAMPING = 1e-6


def root_of(H: Tensor) -> Tensor:
    """The symmetric square root of second moments, (n, n), float64."""
    values, vectors = torch.linalg.eigh(H.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def k_means_rows(points: Tensor, k: int, seed: int) -> Tensor:
    """k centres of the rows of a matrix, (k, d), by Lloyd's iteration from k-means++ seeds.

    Args:
        points: (n, d), n >= k.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        weights = nearest.clamp(min=0)
        weights = weights if float(weights.sum()) > 0 else torch.ones_like(weights)
        weights[chosen] = 0
        pick = int(torch.multinomial(weights + 1e-30 * (weights == 0), 1, generator=generator))
        pick = (
            pick if pick not in chosen else next(i for i in range(len(points)) if i not in chosen)
        )
        chosen.append(pick)
        nearest = torch.minimum(nearest, (points - points[pick]).square().sum(1))
    centres = points[chosen].clone()
    for _ in range(ITERATIONS):
        codes = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, codes, points)
        count = torch.bincount(codes, minlength=k).unsqueeze(1)
        moved = torch.where(count > 0, sums / count.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def coreset(W: Tensor, H: Tensor | None, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Filters C (k, d) and a mixture M (n, k) with W ~ M C; M minimises the error that counts.

    Args:
        W: (n, d).
        H: (d, d) second moments of the inputs, which weigh distances; None counts all the same.
        k: at most n; with k = n nothing is lost.
        seed: of the seeds.
    """
    points = W.double()
    n, d = points.shape
    if k >= n:
        return points, torch.eye(n, dtype=torch.float64, device=W.device)
    H = torch.eye(d, dtype=torch.float64, device=W.device) if H is None else H.double()
    H = H + DAMPING * H.diagonal().mean() * torch.eye(d, dtype=torch.float64, device=W.device)
    root = root_of(H)
    centres = k_means_rows(points @ root, k, seed)
    C = torch.linalg.solve(root, centres.mT).mT
    gram = C @ H @ C.mT
    ridge = 1e-10 * gram.diagonal().mean() * torch.eye(k, dtype=torch.float64, device=W.device)
    return C, torch.linalg.solve(gram + ridge, C @ H @ points.mT).mT


def mixed(layer: Any, C: Tensor, M: Tensor) -> nn.Sequential:
    """A linear layer or convolution as the coreset's layer and one that mixes its outputs."""
    k, like = len(C), {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first: Any = nn.Linear(layer.in_features, k, bias=False, **like)
        second: Any = nn.Linear(k, layer.out_features, bias=bias, **like)
    else:
        first = nn.Conv2d(
            layer.in_channels,
            k,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=False,
            padding_mode=layer.padding_mode,
            **like,
        )
        second = nn.Conv2d(k, layer.out_channels, 1, bias=bias, **like)
    with torch.no_grad():
        first.weight.copy_(C.view_as(first.weight))
        second.weight.copy_(M.view_as(second.weight))
        if bias:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training)


@dataclass(frozen=True)
class CoresetFilters(Step):
    """Replaces linear layers and ungrouped 2-d convolutions by a coreset of their filters and a mixture.

    Attributes:
        ratio: weights that a layer keeps, both parts counted; layers that can't become smaller stay.
        weighted: whether distances are measured at the layer's outputs, on calibration data.
        examples: of the calibration data that are looked at.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    ratio: Fraction = 0.5
    weighted: bool = True
    examples: Count = 512
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weighted:
            object.__setattr__(self, "needs", frozenset())

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Finds all coresets on the network as it came, then replaces the layers."""
        chosen = [
            x
            for x in select(model, self.layers, exclude=self.exclude)
            if x.name and isinstance(x.module, (nn.Linear, nn.Conv2d)) and x.tensor == "weight"
        ]
        chosen = [x for x in chosen if getattr(x.module, "groups", 1) == 1]
        moments: dict[str, Tensor | None] = {x.name: None for x in chosen}
        if self.weighted and chosen:
            batches = batches_of(context.task, "calibration", self.examples)
            for visit in walk(model, batches, chosen):
                moments[visit.layer.name] = moments_of(visit)[0][0]
        filters = {}
        for layer in chosen:
            W = layer.weight.detach().flatten(1)
            n, d = W.shape
            k = int(self.ratio * n * d / (n + d))
            if k >= 1 and k * (n + d) < n * d:
                C, M = coreset(W, moments[layer.name], k, context.seed + layer.index)
                put_module(model, layer.name, mixed(layer.module, C, M))
                filters[layer.name] = [k, n]
        context.record["filters"] = filters
        return model
