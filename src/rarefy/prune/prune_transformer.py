# SPDX-License-Identifier: Apache-2.0
"""Attention heads and feed-forward neurons of a trained transformer go, those whose gates matter least.

Michel, Levy, Neubig: Are Sixteen Heads Really Better than One?, 2019, arXiv 1905.10650, equation 2 (gates);
Kwon, Kim, Mahoney, Hassoun, Keutzer, Gholami: A Fast Post-Training Pruning Framework for Transformers, 2022,
arXiv 2204.09656: Fisher information of the gates (equation 8), search under a cost (section 4.1), tuning of
the masks by least squares (section 4.3).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.graph.units import unit_counts, unit_sums
from rarefy.loops.gradients import batch_gradients
from rarefy.measure.quality import batches_of
from rarefy.prune.attention import split_attention
from rarefy.prune.by_group import Cutting, prune_by_group
from rarefy.prune.readers import Reader, readers_of, sample_rows
from rarefy.prune.rescale import rescale
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import Task, move, split, tensors_of


def gate_gradients(group: Group, products: Mapping[str, Tensor]) -> Tensor:
    """dL/dxi of a gate xi = 1 on each unit: the sum of w dL/dw over all weights that read the unit.

    Args:
        group: of units.
        products: parameter → w dL/dw, shaped like it; one for each that reads the units.

    Returns:
        (units,) float64.
    """
    return unit_sums(group, products, ("in",))


def cheapest_units(
    importance: Mapping[str, Tensor], cost: Mapping[str, float], target: float
) -> dict[str, int]:
    """How many units of each group go so that what is lost is least for what is saved.

    Units go by importance over cost, which is the best choice up to one unit; the most important unit of
    every group stays.

    Args:
        importance: group → (units,).
        cost: group → what one of its units saves.
        target: what is to be saved in all; reached, where that is possible.
    """
    order = sorted(
        (float(score) / cost[name], name)
        for name, scores in importance.items()
        for score in scores.sort().values[:-1]
    )
    counts, saved = dict.fromkeys(importance, 0), 0.0
    for _, name in order:
        if saved >= target:
            break
        counts[name] += 1
        saved += cost[name]
    return counts


@dataclass(frozen=True)
class PruneTransformer(Step):
    """Removes heads and feed-forward neurons, wherever they do least harm, and tunes those that stay.

    It works on every network whose units are read by linear layers or convolutions. `nn.MultiheadAttention`
    is first brought into a form in which heads can leave; how deep the network is, is up to `prune-layers`.

    Attributes:
        sparsity: share of the weights of all heads and neurons that goes.
        criterion: ``"fisher"`` (mean squared gradient of a unit's gate) or ``"gate"`` (mean absolute one),
            over batches.
        tune: whether the units that stay are scaled by least squares on unlabelled data.
        examples: labelled and calibration examples at most.
        samples: entries of a layer's output that are looked at to tune.
        layers, exclude: whose units go, see `rarefy.select.select`; a group goes if it holds one of
            `layers` and none of `exclude`.
    """

    sparsity: OpenFraction = 0.4
    criterion: Literal["fisher", "gate"] = "fisher"
    tune: bool = True
    examples: Count = 1024
    samples: Count = 4096
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train", "labels", "calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Scores the gates, searches the mask, cuts and tunes."""
        split_attention(model)
        inputs = batches_of(context.task, "calibration", self.examples)
        batches = [move(x, context.device) for x in inputs]
        scores: dict[str, Tensor] = {}

        def counts(groups: Sequence[Group]) -> dict[str, int]:
            scores.update(self.scores(model, groups, context.task))
            cost = {g.name: float(unit_counts(g, model, ("in", "out")).mean()) for g in groups}
            total = sum(cost[g.name] * g.size for g in groups)
            return cheapest_units(scores, cost, self.sparsity * total)

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            gone = scores[group.name].argsort(stable=True)[:number]
            if self.tune:
                draw = torch.Generator().manual_seed(context.seed)
                rows = sample_rows(model, readers, batches, self.samples, context.seed)
                for reader, x in zip(readers, rows, strict=True):
                    outputs = torch.randint(len(reader.matrix), (len(x),), generator=draw)
                    rescale(reader, reader.contributions(x, outputs), gone)
            return gone

        cutting = Cutting(counts, choose, self.layers, self.exclude)
        return prune_by_group(model, context, cutting, self.key())

    def scores(self, model: nn.Module, groups: Sequence[Group], task: Task) -> dict[str, Tensor]:
        """Importance of every unit of every group."""
        readers = [reader for group in groups for reader in readers_of(model, group) or []]
        layers = list({r.layer.name: r.layer for r in readers}.values())
        total = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups}
        batches = labelled_batches(task, self.examples)
        for slopes in batch_gradients(model, batches, layers, task.loss):
            products = {
                f"{layer.name}.weight": layer.weight.detach() * slope
                for layer, slope in zip(layers, slopes, strict=True)
            }
            for group in groups:
                xi = gate_gradients(group, products)
                total[group.name] += xi.square() if self.criterion == "fisher" else xi.abs()
        return total


def labelled_batches(task: Task, limit: int) -> Iterable[tuple[object, object]]:
    """Training batches with their targets, at most `limit` examples."""
    seen = 0
    for raw in task.batches("train"):
        inputs, targets = split(raw)
        yield inputs, targets
        seen += len(tensors_of(inputs)[0])
        if seen >= limit:
            return
