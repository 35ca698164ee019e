# SPDX-License-Identifier: Apache-2.0
"""Channels, neurons and heads leave the network for good, with everything that is coupled to them.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710, on the
coupled groups of `rarefy.graph.coupling` (after the idea of Fang, Ma, Song, Mi, Wang: DepGraph, 2023,
arXiv 2301.12900). Every cut is proven: the smaller network computes what the larger one computes with zeros,
or the group is left alone. How important a unit is, how the budget is spread over groups and what a cut costs
are parts of their own: `channel_criteria`, `channel_allocation`, `channel_budget`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from rarefy.errors import RecipeError
from rarefy.loops.optimise import Training
from rarefy.prune.channel_criteria import BY_GRADIENT, BY_WEIGHT, LABELLED
from rarefy.prune.channel_cut import Cutter, Settings
from rarefy.prune.channel_rounds import cut_in_rounds
from rarefy.prune.rounds import Rounds
from rarefy.prune.schedule import SCHEDULES
from rarefy.step import Context, Count, Fraction, OpenFraction, Patterns, Positive, Step

Criterion = Literal[
    "l1", "l2", "geometric-median", "norm-scale", "random", "gradient", "sensitivity", "taylor",
    "taylor-gate", "activation", "activation-norm", "apoz", "rank", "taylor-activation",
    "activation-gradient", "fisher",
]  # fmt: skip
USUAL = {"sensitivity": "none", "taylor": "none", "taylor-gate": "none", "fisher": "none",
         "taylor-activation": "norm"}  # fmt: skip

BLOCK = 8  # channels that ONNX Runtime's convolutions work on at a time


@dataclass(frozen=True)
class PruneChannels(Step):
    """Takes the least important units out of the network, which becomes smaller and faster as it is.

    Attributes:
        sparsity: share of `target` that goes.
        target: ``"units"``, or a budget that is met by searching the smallest cut: ``"parameters"``,
            ``"macs"``, or ``"latency"`` of a batch of one, measured in ONNX Runtime beside the network as it
            came. Only latency depends on the machine's mood.
        criterion: importance of a unit, see `rarefy.prune.channel_criteria.unit_scores`; those that read
            gradients need labels, those that read activations calibration data.
        allocation: ``"global"`` (the least important of all units), ``"local"`` (the same share of every
            group) or ``"lamp"`` (globally, by scores as shares of what ranks above).
        normalise: how scores of different groups are made comparable: ``"none"``, or by each group's
            ``"mean"``, ``"max"`` or ``"norm"``; default: what suits the criterion.
        per: ``"unit"``, or ``"parameters"`` or ``"macs"`` to weigh importance against what a unit saves.
        sparsities: pattern → share of the units of the layers that it matches, in place of `sparsity`;
            other layers keep theirs.
        attention: whether attention loses whole heads, or the same number of dimensions of every head; where
            the network's code allows one of them alone, that is done.
        round_to: the channels that stay are a multiple of it, where a group has that many; default: 8 for
            a budget in latency, because ONNX Runtime's convolutions work on eight channels at a time and
            make little use of other numbers, else 1.
        largest: share of a group's units that may go at most.
        rounds: in which the cut grows; 1 is one shot.
        schedule: how it grows: ``"one-shot"``, ``"linear"``, ``"geometric"``, ``"cubic"``.
        repair: after each cut, without labels: ``"none"``, ``"norms"`` (batch norms are measured anew) or
            ``"bias"`` (what units gave on average moves into their readers' biases).
        examples: how many are looked at to score units and to repair, at most.
        epochs: of training after each cut; 0 for none.
        rate: highest learning rate of that training.
        alpha: share of the original's answers in its loss; default: 0 with labels, 1 without.
        tolerance: largest loss of the validation metric; a round that loses more is undone and ends the
            pruning.
        layers, exclude: whose output channels go, see `rarefy.select.select`; a group goes if it holds one
            of `layers` and none of `exclude`.
    """

    sparsity: OpenFraction = 0.5
    target: Literal["units", "parameters", "macs", "latency"] = "units"
    criterion: Criterion = "l2"
    allocation: Literal["global", "local", "lamp"] = "global"
    normalise: Literal["none", "mean", "max", "norm"] | None = None
    per: Literal["unit", "parameters", "macs"] = "unit"
    sparsities: dict[str, OpenFraction] | None = None
    attention: Literal["heads", "dimensions"] = "heads"
    round_to: Count | None = None
    largest: OpenFraction = 0.9
    rounds: Count = 1
    schedule: Literal["one-shot", "linear", "geometric", "cubic"] = "one-shot"
    repair: Literal["none", "norms", "bias"] = "none"
    examples: Count = 1024
    epochs: Annotated[int, Field(ge=0)] = 0
    rate: Positive = 0.01
    alpha: Fraction | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "one-shot" and self.rounds > 1:
            raise RecipeError(
                f"prune-channels: {self.rounds} rounds of a one-shot schedule cut only in the first; "
                "take schedule: cubic, geometric or linear"
            )
        if self.sparsities is not None and self.target != "units":
            raise RecipeError(
                f"prune-channels: sparsities say how many units go, so target={self.target!r} can't be "
                "met; leave one of them out"
            )
        asked = max((*(self.sparsities or {}).values(), 0.0 if self.sparsities else self.sparsity))
        if self.target == "units" and asked > self.largest:
            raise RecipeError(
                f"prune-channels: a share of {asked:g} would take more of a group than "
                f"largest={self.largest:g} allows, so that no layer is emptied; raise largest or take less"
            )
        wanted = {"train"} if self.epochs else set()
        if self.criterion in LABELLED:
            wanted |= {"train", "labels"}
        elif self.criterion not in (*BY_WEIGHT, *BY_GRADIENT, "norm-scale", "random"):
            wanted.add("calibration")
        if self.repair != "none":
            wanted.add("calibration")
        object.__setattr__(self, "needs", frozenset(wanted))

    def settings_of_cut(self) -> Settings:
        """What a single cut needs to know."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {f.name: own[f.name] for f in dataclasses.fields(Settings) if f.name in own}
        given["round_to"] = self.round_to or (BLOCK if self.target == "latency" else 1)
        given["normalise"] = self.normalise or USUAL.get(self.criterion, "mean")
        return Settings(
            **given, grow=lambda n, end: SCHEDULES[self.schedule](n / self.rounds, end, 0.0)
        )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Looks, scores, cuts, proves and repairs, round by round."""
        cutter = Cutter.start(self.settings_of_cut(), model, context)
        training = Training(self.epochs, self.rate, weight_decay=1e-4)
        rounds = Rounds(self.key(), self.rounds, training, self.tolerance, self.alpha)
        model = cut_in_rounds(model, context, rounds, cutter.cut)
        cutter.conclude(model)
        return model
