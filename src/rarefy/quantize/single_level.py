# SPDX-License-Identifier: Apache-2.0
"""Clusters of weights are frozen in turn, those that lose least first; the rest learns to make up for it.

Xu, Wang, Zhou, Lin, Xiong: Deep Neural Network Compression with Single and Multiple Level Quantization, AAAI
2018, arXiv 1803.03289: per layer k-means; the clusters with the smallest quantisation loss become their
centroids for good, the remaining weights are trained and clustered again, until none is left (section 3).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.codebook import Codebook
from rarefy.forms.shadow import Form
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.loops.training import LearningStep
from rarefy.quantize.kmeans import cluster, nearest_codes
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, Count, Positive


class PartlyFrozen(Form):
    """Where `frozen` is set the weight is `held`, elsewhere what is trained.

    Args:
        frozen: bool, shape of the weight.
        held: values, shape of the weight.
    """

    kind: ClassVar[str] = "codebook"
    frozen: Tensor
    held: Tensor

    def __init__(self, frozen: Tensor, held: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", frozen)
        self.register_buffer("held", held)

    def forward(self, v: Tensor) -> Tensor:
        return torch.where(self.frozen, self.held, v)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def cluster_losses(values: Any, centres: Any, codes: Any) -> Any:
    """Mean squared distance of each cluster's values to their centre, (K,); infinite for empty ones."""
    count = np.bincount(codes, minlength=len(centres))
    total = np.bincount(codes, (values - centres[codes]) ** 2, minlength=len(centres))
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def freeze(w: Tensor, frozen: Tensor, levels: int, last: bool) -> tuple[Tensor, Tensor, int]:
    """Clusters what is free and freezes the half of the clusters that loses least, or all of them.

    Args:
        w: any shape.
        frozen: bool, same shape.
        levels: clusters for the free weights.
        last: whether all clusters are frozen.

    Returns:
        Which weights are frozen now, their values, and the number of levels that were used up.
    """
    free = (~frozen).cpu().numpy()
    values = w.detach().cpu().double().numpy()[free]
    if not values.size:
        return frozen, w.detach(), 0
    centres = np.asarray(cluster(values, levels, "density", 0))
    codes = nearest_codes(values, centres).astype(np.int64)
    order = np.argsort(cluster_losses(values, centres, codes), kind="stable")
    chosen = order if last else order[: max(1, len(centres) // 2)]
    taken = np.isin(codes, chosen)
    now, held = frozen.cpu().numpy().copy(), w.detach().cpu().double().numpy().copy()
    places = np.flatnonzero(free)[taken]
    now.reshape(-1)[places] = True
    held.reshape(-1)[places] = centres[codes[taken]]
    return torch.from_numpy(now).to(w.device), torch.from_numpy(held).to(w), len(chosen)


@dataclass(frozen=True)
class SingleLevel(LearningStep):
    """Quantises every layer to 2^bits shared values, part by part, training what is still free.

    Attributes:
        bits: of an index: a layer keeps at most 2^bits values.
        rounds: in which clusters are frozen, half of those left each time and all in the last.
        epochs: of training after each round but the last.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Annotated[int, Field(ge=1, le=8)] = 5
    rounds: Count = 3
    epochs: Annotated[int, Field(ge=0)] = 3
    rate: Positive = 1e-3

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Freezes and trains in turn; records the frozen share after every round."""
        groups = holders(model, select(model, self.layers, exclude=self.exclude))
        frozen = [torch.zeros_like(finite_weight(g[0]), dtype=torch.bool) for g in groups]
        left = [2**self.bits] * len(groups)
        curve: list[dict[str, float]] = []
        settings = Training(max(self.epochs, 1), self.rate, "adam", weight_decay=0.0)
        for number in range(self.rounds):
            last = number == self.rounds - 1
            for place, group in enumerate(groups):
                w = finite_weight(group[0])
                now, held, used = freeze(w, frozen[place], max(left[place], 1), last)
                frozen[place], left[place] = now, left[place] - used
                clothe(group, held, PartlyFrozen(now, held))
            curve.append(
                {g[0].name: float(f.float().mean()) for g, f in zip(groups, frozen, strict=True)}
            )
            if self.epochs and not last and groups:
                part = f"single level {number + 1}"
                model = repair(model, context, settings, alpha=self.alpha, label=part)
        for group in groups:
            w = finite_weight(group[0])
            values, codes = w.unique(return_inverse=True)
            clothe(group, w, Codebook(codes.view(w.shape), len(values)))
        context.record["frozen"] = curve
        return model.eval()
