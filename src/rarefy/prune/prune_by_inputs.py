# SPDX-License-Identifier: Apache-2.0
"""Layer after layer loses weights by what its inputs say about them, without labels and without training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.forms.mask import mask_of, set_mask
from rarefy.loops.matrix import output_energy
from rarefy.loops.progress import bar
from rarefy.loops.ridge import inverse_factor
from rarefy.loops.statistics import SecondMoment
from rarefy.loops.walk import Visit, walk
from rarefy.measure.quality import batches_of
from rarefy.prune.granularity import parse
from rarefy.prune.second_order import keep_by_row, sparse_gpt, wanda_scores
from rarefy.select import select
from rarefy.step import Context, Count, OpenFraction, Patterns, Step


@dataclass(frozen=True)
class PruneByInputs(Step):
    """Prunes every layer to the same sparsity under already pruned predecessors, in one pass over few inputs.

    Attributes:
        sparsity: share of each layer's weights that goes.
        method: ``"sparsegpt"`` (weights that stay make up for those that go) or ``"wanda"`` (they stay as
            they are; every output loses the same share), see `rarefy.prune.second_order`.
        granularity: ``"element"`` or ``"N:M"`` as 2:4 along the inputs, whose sparsity is 1 - N/M.
        examples: calibration examples at most.
        damping: ridge on the second moments of ``"sparsegpt"``, as a share of their diagonal's mean.
        block: columns whose mask is chosen at once by ``"sparsegpt"``.
        layers, exclude: linear layers and convolutions, see `rarefy.select.select`.
    """

    sparsity: OpenFraction = 0.5
    method: Literal["sparsegpt", "wanda"] = "sparsegpt"
    granularity: Annotated[str, Field(pattern=r"^(element|[1-9]\d*:[1-9]\d*)$")] = "element"
    examples: Count = 512
    damping: Annotated[float, Field(gt=0)] = 0.01
    block: Count = 128
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})
    writes: ClassVar[str | None] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse(self.granularity)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Walks through the layers; each loses its weights before the next is looked at."""
        chosen = select(model, self.layers, exclude=self.exclude)
        batches = batches_of(context.task, "calibration", self.examples)
        errors: dict[str, float] = context.record.setdefault("errors", {})
        with bar(self.key(), len(chosen)) as advance:
            for visit in walk(model, batches, chosen):
                errors[visit.layer.name] = self.prune(visit)
                advance(1, visit.layer.name)
        if not errors:
            raise RecipeError(
                f"{self.key()}: no calibration batch reaches a layer of {self.layers!r}; choose others"
            )
        return model.eval()

    @torch.no_grad()
    def prune(self, visit: Visit) -> float:
        """Prunes a layer; the squared error of its outputs as a share of their energy."""
        moment = SecondMoment()
        for rows in visit.inputs():
            moment.update(rows)
        before = visit.matrix
        grouped = before.dim() == 3
        W = before if grouped else before.unsqueeze(0)
        H = moment.mean() if grouped else moment.mean().unsqueeze(0)
        alive = W != 0
        new, keep = self.solve(W, H, alive)
        energy = output_energy(W, H)
        error = output_energy(new - W, H)
        visit.put((new if grouped else new.squeeze(0)).to(before))
        mark(visit, before, keep if grouped else keep.squeeze(0))
        return float(error / energy) if float(energy) else 0.0

    def solve(self, W: Tensor, H: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The new weights and which of them stay, (groups, out, in) both."""
        kind, first, second = parse(self.granularity)
        pattern = (first, second) if kind == "n:m" else None
        if self.method == "wanda":
            keep = keep_by_row(wanda_scores(W, H).masked_fill(~alive, -1), self.sparsity, pattern)
            keep &= alive
            return W * keep, keep
        U = inverse_factor(H, self.damping)
        return sparse_gpt(W, U, self.sparsity, alive=alive, pattern=pattern, block=self.block)


def mark(visit: Visit, before: Tensor, keep: Tensor) -> None:
    """Masks what a layer lost, whatever the order in which its kind stores weights."""
    layer = visit.layer
    values = visit.matrix.clone()
    visit.put(keep.to(values))
    stays = layer.weight.detach() != 0
    visit.put(values)
    set_mask(layer.module, stays & mask_of(layer.module, layer.tensor), layer.tensor)
