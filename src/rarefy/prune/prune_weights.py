# SPDX-License-Identifier: Apache-2.0
"""The least important weights become zero and stay zero, all at once or in rounds with repair between.

Han, Pool, Tran, Dally 2015, arXiv 1506.02626 (magnitude); Zhu, Gupta 2017, arXiv 1710.01878 (gradual).
How important a weight is, how the budget is spread over layers, what is pruned as one and how sparsity
grows are parts of their own: `scores`, `allocation`, `granularity`, `schedule`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import ModelError, RecipeError
from rarefy.forms.mask import mask_of
from rarefy.loops.finite import all_finite
from rarefy.loops.gradients import batch_gradients
from rarefy.loops.optimise import Training
from rarefy.prune.allocation import allocate
from rarefy.prune.granularity import PATTERN, n_of_m, parse, pool_blocks, spread_blocks
from rarefy.prune.rounds import Rounds, prune_in_rounds
from rarefy.prune.schedule import SCHEDULES
from rarefy.prune.scores import BY_GRADIENT, magnitude, mean_scores
from rarefy.prune.threshold import each
from rarefy.select import Layer, select
from rarefy.step import Context, Count, Fraction, OpenFraction, Patterns, Positive, Step

Allocation = Literal["local", "global", "lamp", "erk", "std", "normalised"]


def choose_masks(
    scores: Sequence[Tensor],
    weights: Sequence[Tensor],
    sparsity: float,
    allocation: str = "global",
    granularity: str = "element",
) -> list[Tensor]:
    """Masks, True where a weight stays.

    Args:
        scores: importance of every weight, shaped like it; negative for one that is gone already.
        weights: of the layers, (out, in, …).
        sparsity: share of units to prune; an N:M pattern keeps at least N of M whatever it says.
        allocation: see `rarefy.prune.allocation.allocate`.
        granularity: ``"element"``, ``"N:M"`` or ``"RxC"`` blocks.
    """
    kind, first, second = parse(granularity)
    if kind == "n:m":
        kept = max(first, second - round(sparsity * second))
        return [n_of_m(s, kept, second) for s in scores]
    if kind == "element":
        return allocate(allocation, scores, weights, sparsity)
    pooled = each(lambda s: pool_blocks(s, first, second), scores)
    chosen = allocate(allocation, pooled, weights, sparsity)
    return [spread_blocks(k, first, second, w.shape) for k, w in zip(chosen, weights, strict=True)]


@dataclass(frozen=True)
class PruneWeights(Step):
    """Sets the least important weights to zero and keeps them there whatever is trained later.

    Attributes:
        sparsity: share of zeros at the end, over all chosen layers together.
        allocation: how they are spread: ``"local"`` (the same in every layer), ``"global"`` (one
            threshold), ``"lamp"``, ``"erk"``, ``"std"`` (one factor of each layer's standard deviation),
            ``"normalised"`` (by each layer's norm).
        criterion: ``"magnitude"``, or with labelled data ``"gradient"``, ``"sensitivity"`` (|g w|),
            ``"taylor"`` ((g w)²).
        granularity: ``"element"``, ``"N:M"`` as 2:4 (its sparsity is 1 - N/M, whatever `sparsity` says),
            or blocks ``"RxC"`` as 4x1.
        schedule: how sparsity grows over the rounds: ``"one-shot"``, ``"linear"``, ``"geometric"``,
            ``"cubic"``.
        rounds: in which it grows; 1 is one shot.
        epochs: of repair after each round; 0 for none.
        rate: highest learning rate of the repair.
        alpha: share of the original's answers in the repair's loss; default: 0 with labels, 1 without.
        tolerance: largest loss of the validation metric; a round that loses more is undone and ends the
            pruning.
        sparsities: pattern → sparsity of the layers that it matches, in place of `sparsity`.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    sparsity: OpenFraction = 0.5
    allocation: Allocation = "global"
    criterion: Literal["magnitude", "gradient", "sensitivity", "taylor"] = "magnitude"
    granularity: Annotated[str, Field(pattern=PATTERN)] = "element"
    schedule: Literal["one-shot", "linear", "geometric", "cubic"] = "one-shot"
    rounds: Count = 1
    epochs: Annotated[int, Field(ge=0)] = 0
    rate: Positive = 0.01
    alpha: Fraction | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    sparsities: dict[str, Fraction] | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})
    writes: ClassVar[str | None] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse(self.granularity)
        if self.schedule == "one-shot" and self.rounds > 1:
            raise RecipeError(
                f"prune-weights: {self.rounds} rounds of a one-shot schedule prune only in the first; "
                "take schedule: cubic, geometric or linear"
            )
        wanted = {"train"} if self.epochs else set()
        if self.criterion != "magnitude":
            wanted |= {"train", "labels"}
        object.__setattr__(self, "needs", frozenset(wanted))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Scores, allocates, masks and repairs, round by round."""
        chosen = select(model, self.layers, exclude=self.exclude)
        targets = self.targets(model, chosen)
        grow = SCHEDULES[self.schedule]

        def choose(progress: float) -> list[Tensor]:
            scores = self.scores(model, chosen, context)
            masks: dict[Layer, Tensor] = {}
            for group, end in targets:
                at = [chosen.index(layer) for layer in group]
                weights = each(lambda layer: layer.weight.detach(), group)
                part = each(scores.__getitem__, at)
                share = grow(progress, end, 0.0)
                found = choose_masks(part, weights, share, self.allocation, self.granularity)
                masks.update(zip(group, found, strict=True))
            return [masks.get(x, torch.ones_like(x.weight, dtype=torch.bool)) for x in chosen]

        training = Training(self.epochs, self.rate, weight_decay=1e-4)
        rounds = Rounds(self.key(), self.rounds, training, self.tolerance, self.alpha)
        return prune_in_rounds(model, context, chosen, rounds, choose)

    def targets(self, model: nn.Module, chosen: list[Layer]) -> list[tuple[list[Layer], float]]:
        """Groups of layers with the sparsity that each group reaches together."""
        kind, n, m = parse(self.granularity)
        if kind == "n:m":
            return [(chosen, 1 - n / m)]
        if self.sparsities is None:
            return [(chosen, self.sparsity)]
        by_layer: dict[Layer, float] = {}
        for pattern, sparsity in self.sparsities.items():
            matching = {id(layer.module) for layer in select(model, pattern)}
            by_layer |= {layer: sparsity for layer in chosen if id(layer.module) in matching}
        return [([layer], by_layer[layer]) for layer in chosen if layer in by_layer]

    def scores(self, model: nn.Module, chosen: list[Layer], context: Context) -> Sequence[Tensor]:
        """The importance of every weight; -1 for those that are pruned already."""
        broken = next((x for x in chosen if not all_finite(x.weight)), None)
        if broken is not None:
            raise ModelError(f"'{broken.name}' holds NaN or infinity; its weights can't be ranked")
        found: Sequence[Tensor]
        if self.criterion == "magnitude":
            found = each(lambda layer: magnitude(layer.weight), chosen)
        else:
            batches = context.task.batches("train")
            slopes = batch_gradients(model, batches, chosen, context.task.loss)
            weights = each(lambda layer: layer.weight.detach(), chosen)
            found = mean_scores(BY_GRADIENT[self.criterion], weights, slopes)

        def alive(score: Tensor, layer: Layer) -> Tensor:
            gone = ~mask_of(layer.module, layer.tensor)
            return score.masked_fill(gone, -1.0) if bool(gone.any()) else score

        return each(alive, found, chosen)
