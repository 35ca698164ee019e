# SPDX-License-Identifier: Apache-2.0
"""A network from which channels were cut learns to see what the whole one sees at the same layers.

Answers are imitated as in Hinton, Vinyals, Dean 2015, arXiv 1503.02531. Features are compared in ways that do
not ask how many channels there are, so no adapter is needed: maps by their spatial attention (Zagoruyko,
Komodakis: Paying More Attention to Attention, 2017, arXiv 1612.03928), vectors by how alike the examples of a
batch are (Tung, Mori: Similarity-Preserving Knowledge Distillation, 2019, arXiv 1907.09682).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.loops.features import Features, features
from rarefy.loops.losses import alike_loss
from rarefy.loops.modes import evaluating
from rarefy.loops.training import DescentStep
from rarefy.prune.penalised import train_penalised
from rarefy.step import Context
from rarefy.task import Inputs, call, move


@torch.no_grad()
def cut_layers(model: nn.Module, teacher: nn.Module, example: Inputs) -> list[str]:
    """Modules without children that give fewer channels than the original's, in the order in which they run.

    Args:
        model, teacher: run once each.
        example: a batch on their device.
    """
    theirs = {name for name, _ in teacher.named_modules()}
    leaves = [n for n, m in model.named_modules() if n in theirs and not list(m.children())]
    with ExitStack() as stack:
        sides = []
        for network in (model, teacher):
            stack.enter_context(evaluating(network))
            sides.append(stack.enter_context(features(network, leaves)))
            call(network, example)
    mine, whole = sides
    return [n for n in mine if n in whole and mine[n].dim() > 1 and mine[n].shape != whole[n].shape]


@dataclass(frozen=True)
class FeatureGap:
    """How far the student's features are from the teacher's.

    Attributes:
        student, teacher: the features of the present batch.
        strength: factor of their mean loss.
    """

    student: Features
    teacher: Features
    strength: float

    def term(self, progress: float) -> Tensor:
        """strength · the mean of `alike_loss` over the layers."""
        losses = [alike_loss(x, self.teacher[name]) for name, x in self.student.items()]
        return self.strength * torch.stack(losses).mean()

    def shrink(self, rate: float, progress: float) -> None:
        """Nothing: the loss is smooth, its gradient is followed."""


@dataclass(frozen=True)
class PreserveFeatures(DescentStep):
    """Trains a cut network on the original's answers, and on its features where channels were cut.

    Attributes:
        strength: factor of the feature loss; 0 for the answers alone.
        alpha: share of the original's answers in the rest of the loss; default: 0.7 with labels, 1 without.
        epochs: passes over the training data.
        rate: highest learning rate, of SGD.
        schedule, warmup, weight_decay, momentum, clip: see `rarefy.loops.optimise.Training`.
    """

    strength: Annotated[float, Field(ge=0)] = 1.0
    alpha: Annotated[float, Field(gt=0, le=1)] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.alpha < 1:
            object.__setattr__(self, "needs", self.needs | {"labels"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place; a network from which nothing was cut learns from the answers alone."""
        example, teacher = move(context.task.example, context.device), context.teacher
        layers = cut_layers(model, teacher, example)
        context.record["layers"] = layers
        alpha = self.alpha if self.alpha is not None else 0.7 if context.task.labelled else 1.0
        strength = self.strength if layers else 0.0
        with features(model, layers) as mine, features(teacher, layers) as theirs:
            gap = FeatureGap(mine, theirs, strength)
            return train_penalised(
                model,
                context,
                self.training(),
                gap,
                prox=strength == 0,
                alpha=alpha,
                label=self.key(),
            )
