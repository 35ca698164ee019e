# SPDX-License-Identifier: Apache-2.0
"""A compressed network learns from the softened answers of the untouched original.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. The loss is
alpha · T² · KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) · task loss; networks whose outputs are
no classes imitate the outputs themselves (Ba, Caruana 2014, arXiv 1312.6184).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from rarefy.loops.losses import Imitation, imitation_loss, logit_loss, soft_target_loss
from rarefy.loops.repair import repair
from rarefy.loops.training import TrainedStep
from rarefy.step import Context, Fraction, Positive

LOSSES: dict[str, Imitation] = {"soft-targets": soft_target_loss, "logits": logit_loss}


def annealed(start: float, progress: float) -> float:
    """The temperature at `progress` in [0, 1]: from `start` linearly to 1."""
    return start + (1 - start) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Distill(TrainedStep):
    """Trains on the teacher's answers; with labels they count for a share of the loss, without for all.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate.
        temperature: T; softens both answers.
        temperature_schedule: ``"fixed"``, or ``"annealed"`` linearly to 1.
        alpha: share of the teacher in the loss; default: 0.7 with labels, 1 without.
        loss: ``"soft-targets"``, or ``"logits"`` (half the squared difference); default: what suits the
            outputs, classes or not.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision: see
            `rarefy.loops.optimise.Training`.
    """

    temperature: Positive = 4.0
    temperature_schedule: Literal["fixed", "annealed"] = "fixed"
    alpha: Fraction | None = None
    loss: Literal["soft-targets", "logits"] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.alpha < 1:
            object.__setattr__(self, "needs", self.needs | {"labels"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place; masks, codebooks and grids stay on."""
        alpha = self.alpha if self.alpha is not None else 0.7 if context.task.labelled else 1.0
        return repair(
            model,
            context,
            self.training(),
            alpha=alpha,
            temperature=self.at if self.temperature_schedule == "annealed" else self.temperature,
            imitate=LOSSES[self.loss] if self.loss else imitation_loss,
            label="distill",
        )

    def at(self, progress: float) -> float:
        """The temperature of an annealed distillation at `progress`."""
        return annealed(self.temperature, progress)
