# SPDX-License-Identifier: Apache-2.0
"""Training what is left of a network on the labels, or only measuring its batch norms anew."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from rarefy.loops.norms import reestimate_norms
from rarefy.loops.repair import repair
from rarefy.loops.training import TrainedStep
from rarefy.step import Context, Count, Fraction, Positive, Step


@dataclass(frozen=True)
class Finetune(TrainedStep):
    """Trains on the task's loss at a small rate; masks, codebooks and grids stay on.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate; a tenth to a hundredth of the original training's is usual.
        alpha: share of the original's answers in the loss; 0 for labels alone.
        temperature: softens these answers.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`; with `patience` the best epoch by validation is
            kept.
    """

    epochs: Count = 3
    rate: Positive = 0.005
    alpha: Fraction = 0.0
    temperature: Positive = 4.0

    needs: ClassVar[frozenset[str]] = frozenset({"train", "labels"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place."""
        share, softness = self.alpha, self.temperature
        training = self.training()
        return repair(model, context, training, alpha=share, temperature=softness, label="finetune")


@dataclass(frozen=True)
class ReestimateNorms(Step):
    """Replaces the running statistics of batch norms by those of the calibration data; no labels.

    Attributes:
        examples: how many calibration examples are used at most.
    """

    examples: Count = 512

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Averages the statistics of all batches, each counting the same.

        Raises:
            TaskError: a batch of one example, which has no spread.
        """
        if not reestimate_norms(model, context.task, self.examples):
            context.record.setdefault("notes", []).append(f"{self.key()}: there is no batch norm")
        return model
