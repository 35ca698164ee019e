# SPDX-License-Identifier: Apache-2.0
"""Weights of a layer share a few values: k-means clusters whose centres are trained on.

Han, Mao, Dally: Deep Compression, 2016, arXiv 1510.00149, section 3: clusters per layer, centres that start
equally spaced between the smallest and the largest weight, and gradients summed over each cluster
(equation 3). Which weight belongs to which cluster stays fixed while the centres train.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.forms.codebook import Codebook
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.quantize.kmeans import Start, cluster, nearest_codes
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import Layer, select
from rarefy.step import Context, Fraction, Patterns, Positive, Step

Bits = Annotated[int, Field(ge=1, le=16)]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d,
                nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # fmt: skip


def share(w: Tensor, levels: int, start: Start = "linear", seed: int = 0) -> Codebook | None:
    """Clusters a weight into at most `levels` values; None if all of it is zero.

    Entries that are exactly zero were pruned: they keep a zero of their own, which counts as one of the
    levels and never moves.

    Args:
        w: any shape, finite.
        levels: at least 2 if there are zeros beside other values.
        start: see `rarefy.quantize.kmeans.start_levels`.
        seed: of the random start.
    """
    held = w.detach().cpu()
    array = (held if held.dtype == torch.float64 else held.float()).numpy()
    alive = array != 0  # numpy selects by it without a list of places, which takes twice the weight
    zero = not bool(alive.all())
    values = array[alive] if zero else array.ravel()
    if not values.size:
        return None
    centres = cluster(values, max(levels - zero, 1), start, seed)
    codes = nearest_codes(values, centres)
    if zero:
        codes += 1
        indices = np.zeros(w.shape, codes.dtype)
        indices[alive] = codes
    else:
        indices = codes.reshape(w.shape)
    return Codebook(torch.from_numpy(indices).to(w.device), len(centres), zero)


@dataclass(frozen=True)
class ShareWeights(Step):
    """Clusters the weights of every layer and trains the centres.

    Attributes:
        bits: of an index, so that a layer has at most 2^bits distinct values, zero among them; one number,
            or patterns with a number each (the last that matches counts; layers that none matches are left
            alone). By default 8 for convolutions and 5 for other layers, as in the paper.
        levels: the number of values in place of `bits`.
        initialisation: of the centres: ``"linear"``, ``"random"``, ``"density"``, or ``"exact"`` for the
            optimum. Linear keeps the few large weights apart, which matters most when centres are trained.
        epochs: of training the centres, with everything that is not shared; 0 for none.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    bits: Bits | dict[str, Bits] | None = None
    levels: Annotated[int, Field(ge=2, le=65536)] | None = None
    initialisation: Literal["linear", "random", "density", "exact"] = "linear"
    epochs: Annotated[int, Field(ge=0)] = 3
    rate: Positive = 1e-3
    alpha: Fraction | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "codebook"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is not None and self.levels is not None:
            raise RecipeError(
                f"share-weights: bits={self.bits!r} and levels={self.levels} say the same thing twice; "
                "give one of them"
            )
        if not self.epochs:  # clusters alone are found without data
            object.__setattr__(self, "needs", frozenset())

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Clusters layer by layer, then trains the centres."""
        errors: dict[str, float] = {}
        values: dict[str, int] = {}
        sizes = self.sizes(model)
        for shared, levels in zip(holders(model, sizes), sizes.values(), strict=True):
            layer = shared[0]
            w = finite_weight(layer)
            form = share(w, levels, self.initialisation, context.seed + layer.index)
            if form is None:  # nothing but zeros
                continue
            clothe(shared, w, form)
            off = layer.weight.detach() - w
            errors[layer.path] = float(off.norm() / w.norm())
            values[layer.path] = form.levels + form.zero
        context.record.update(relative_error=errors, distinct_values=values)
        if not self.epochs:
            return model
        settings = Training(self.epochs, self.rate, "adam", warmup=0.0, weight_decay=0.0)
        return repair(model, context, settings, alpha=self.alpha, label="shared weights")

    def sizes(self, model: nn.Module) -> dict[Layer, int]:
        """How many distinct values every layer may have."""
        chosen = select(model, self.layers, exclude=self.exclude)
        if self.levels is not None:
            return dict.fromkeys(chosen, self.levels)
        if isinstance(self.bits, int):
            return dict.fromkeys(chosen, 2**self.bits)
        if self.bits is None:
            return {x: 2**8 if isinstance(x.module, CONVOLUTIONS) else 2**5 for x in chosen}
        found: dict[Layer, int] = {}
        for pattern, bits in self.bits.items():
            matching = {id(layer.module) for layer in select(model, pattern)}
            found |= {layer: 2**bits for layer in chosen if id(layer.module) in matching}
        return {layer: found[layer] for layer in chosen if layer in found}
