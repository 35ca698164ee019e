# SPDX-License-Identifier: Apache-2.0
"""Training under a penalty that empties weights, channels or blocks; what became empty is cut without loss.

Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, 2017,
arXiv 1708.06519 (norm scales); Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in Deep Neural Networks,
2016, arXiv 1608.03665 (group lasso); Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, 2021,
arXiv 2012.09243.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.errors import ModelError, RecipeError
from rarefy.graph.coupling import couple
from rarefy.graph.groups import Group
from rarefy.loops.blocks import put_module
from rarefy.loops.training import DescentStep
from rarefy.prune import penalties
from rarefy.prune.channel_criteria import effective, norm_parameters
from rarefy.prune.channel_scores import filters, l1
from rarefy.prune.channel_selection import chosen_groups
from rarefy.prune.penalised import Entries, GroupLasso, Growing, Penalty, train_penalised
from rarefy.prune.penalty_groups import (
    KINDS,
    block_groups,
    coupled_units,
    layer_groups,
    skipped_blocks,
)
from rarefy.prune.silent_units import cut_silent_units
from rarefy.select import select
from rarefy.step import Context, Fraction, OpenFraction, Patterns, Positive
from rarefy.task import Inputs, move

Groups = Literal["coupled", "filter", "input", "shape", "block"]
Role = Literal["out", "along", "in"]
STRENGTHS = {"norm-scale": 1e-4, "group-lasso": 1e-4, "l1": 1e-5, "l2": 5e-4, "growing": 1.0}


@dataclass(frozen=True)
class Sparsify(DescentStep):
    """Trains with a penalty on channels, groups or single weights.

    Attributes:
        penalty: ``"norm-scale"`` (Σ|γ| of the norms that prunable channels pass), ``"group-lasso"``
            (Σ sqrt(|g|) ‖w_g‖), ``"l1"`` (Σ|w|), ``"l2"`` (½ Σw²), ``"growing"`` (an L2 penalty that grows on
            the units with the smallest norm until they can go).
        strength: factor of the penalty, of a growing one the ceiling; default: 1e-4 for norm scales and
            groups, 1e-5 for l1, 5e-4 for l2, 1 for growing.
        update: ``"prox"`` (the proximal map after every step, which gives exact zeros) or ``"subgradient"``
            (with the gradient of the loss).
        groups: of the group lasso: ``"coupled"`` units of the whole network, ``"filter"``, ``"input"``
            channel or ``"shape"`` of each layer, or residual ``"block"``.
        roles: which weights a coupled unit has: ``"out"`` that give it, ``"along"`` of norms and biases,
            ``"in"`` that read it.
        sparsity: share of the units of each group that a growing penalty takes.
        start: share of the training during which a growing penalty grows on all units, before it chooses.
        cut: whether what has become zero is cut; default: channels and blocks are, for single weights
            nothing is.
        epochs: passes over the training data.
        rate: highest learning rate, of SGD.
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        schedule, warmup, weight_decay, momentum, clip: see `rarefy.loops.optimise.Training`.
        layers, exclude: which layers are penalised; of channels those that hold one of `layers` and none of
            `exclude`.
    """

    penalty: Literal["norm-scale", "group-lasso", "l1", "l2", "growing"] = "norm-scale"
    strength: Positive | None = None
    update: Literal["prox", "subgradient"] = "prox"
    groups: Groups = "coupled"
    roles: tuple[Role, ...] = ("out", "along")
    sparsity: OpenFraction = 0.5
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cut: bool | None = None
    alpha: Fraction | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.roles:
            raise RecipeError(
                "sparsify: roles=() leaves a unit without weights; name some of out, along, in"
            )
        if self.alpha is not None and self.alpha < 1:
            object.__setattr__(self, "needs", self.needs | {"labels"})

    @property
    def of_channels(self) -> bool:
        """Whether the penalty is on coupled units."""
        lasso = self.penalty == "group-lasso" and self.groups == "coupled"
        return lasso or self.penalty in ("norm-scale", "growing")

    @property
    def cuts_channels(self) -> bool:
        """Whether silent channels are cut afterwards."""
        by_layer = self.penalty == "group-lasso" and self.groups in ("filter", "input")
        return self.cut if self.cut is not None else self.of_channels or by_layer

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains under the penalty, then cuts what has become zero."""
        example = move(context.task.example, context.device)
        blocks = [] if self.groups != "block" else self.blocks(model, example)
        channels = self.channels(model, example) if self.of_channels or self.cuts_channels else []
        penalty = (
            GroupLasso(block_groups(blocks), self.factor) if blocks else self.pull(model, channels)
        )
        prox, settings = self.update == "prox", self.training()
        train_penalised(model, context, settings, penalty, prox=prox, alpha=self.alpha)
        if isinstance(penalty, Growing):
            penalty.vanish()
        if self.cut is not False:
            for block in blocks:
                if not any(bool(p.any()) for p in block.module.parameters()):
                    put_module(model, block.name, block.bypass())
                    context.record.setdefault("removed", []).append({"block": block.name})
        if self.cuts_channels:
            outcome = cut_silent_units(model, example, self.layers, self.exclude)
            context.record.update(cut=outcome.cut, spared=outcome.spared, barriers=outcome.barriers)
        return model.eval()

    @property
    def factor(self) -> float:
        """The penalty's strength, given or usual."""
        return STRENGTHS[self.penalty] if self.strength is None else self.strength

    def channels(self, model: nn.Module, example: Inputs) -> list[Group]:
        """The coupled groups that may be cut."""
        return chosen_groups(model, couple(model, example), self.layers, self.exclude)[0]

    def blocks(self, model: nn.Module, example: Inputs) -> list[Any]:
        """The blocks that can become empty.

        Raises:
            ModelError: there is none.
        """
        found = skipped_blocks(model, example) if self.penalty == "group-lasso" else []
        if not found and self.penalty == "group-lasso":
            raise ModelError(
                f"{type(model).__name__} has no residual block that hands its input on when its weights "
                "are zero; take groups: coupled"
            )
        return found

    def pull(self, model: nn.Module, channels: list[Group]) -> Penalty:
        """The penalty on single weights, norm scales, units or groups inside layers.

        Raises:
            ModelError: no prunable channel passes a norm with a scale.
        """
        if self.penalty == "norm-scale":
            held = dict(model.named_parameters())
            names = {n for g in channels for n in norm_parameters(model, g) if n.endswith("weight")}
            if not names:
                raise ModelError(
                    "sparsify: no channel that could be cut passes a norm with a scale; take "
                    "penalty: group-lasso"
                )
            return Entries([held[n] for n in sorted(names)], self.factor)
        if self.of_channels:
            units = coupled_units(model, channels, self.roles)
            if self.penalty == "group-lasso":
                return GroupLasso(units, self.factor)
            return Growing(units, self.factor, lambda: self.smallest(model, channels), self.start)
        layers = select(model, self.layers, exclude=self.exclude)
        if self.penalty == "group-lasso":
            assert self.groups in KINDS
            return GroupLasso(layer_groups(layers, self.groups), self.factor)
        value, prox = (
            (penalties.l1, penalties.l1_prox)
            if self.penalty == "l1"
            else (penalties.l2, penalties.l2_prox)
        )
        return Entries([layer.stored for layer in layers], self.factor, value, prox)

    def smallest(self, model: nn.Module, channels: list[Group]) -> Tensor:
        """Marks the same share of every group, the units with the smallest L1 norm, bool (units,)."""
        weights, marks = effective(model, channels), []
        for group in channels:
            order = l1(filters(group, weights)).argsort()
            gone = torch.zeros(group.size, dtype=torch.bool)
            gone[order[: min(round(self.sparsity * group.size), group.size - 1)]] = True
            marks.append(gone)
        return torch.cat(marks)
