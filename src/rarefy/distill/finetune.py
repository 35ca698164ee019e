# SPDX-License-Identifier: Apache-2.0
"""Training what is left of a network on the labels, or only measuring its batch norms anew."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rarefy.errors import TaskError
from rarefy.loops.modes import device_of
from rarefy.loops.progress import watch
from rarefy.loops.repair import repair, training_of
from rarefy.measure.quality import batches_of
from rarefy.step import Context, Count, Fraction, Positive, Step
from rarefy.task import call, move, tensors_of


@dataclass(frozen=True)
class Finetune(Step):
    """Trains on the task's loss at a small rate; masks, codebooks and grids stay on.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate; a tenth to a hundredth of the original training's is usual.
        alpha: share of the original's answers in the loss; 0 for labels alone.
        temperature: softens these answers.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision: see
            `rarefy.loops.optimise.Training`; with `patience` the best epoch by validation is kept.
    """

    epochs: Count = 3
    rate: Positive = 0.005
    alpha: Fraction = 0.0
    temperature: Positive = 4.0
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Positive | None = None
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: Count | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"

    needs: ClassVar[frozenset[str]] = frozenset({"train", "labels"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place."""
        share, softness = self.alpha, self.temperature
        training = training_of(self)
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
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            context.record.setdefault("notes", []).append(f"{self.key()}: there is no batch norm")
            return model
        was = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average over all batches
        model.eval()
        device = device_of(model)
        try:
            for norm in norms:
                norm.train()
            batches = batches_of(context.task, "calibration", self.examples)
            with torch.no_grad():
                for inputs in watch(batches, "batch norms"):
                    if len(tensors_of(inputs)[0]) < 2:
                        raise TaskError(
                            f"task '{context.task.name}' has a calibration batch of one example; "
                            "batch statistics need two or more: drop the last batch or take larger ones"
                        )
                    call(model, move(inputs, device))
        finally:
            for norm, momentum in zip(norms, was, strict=True):
                norm.momentum = momentum
            model.eval()
        return model
