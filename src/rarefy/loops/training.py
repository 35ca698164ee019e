# SPDX-License-Identifier: Apache-2.0
"""The hyper-parameters that every step which trains has in common, as fields of a recipe."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rarefy.loops.optimise import Training
from rarefy.step import Count, Fraction, Positive, Step


@dataclass(frozen=True)
class DescentStep(Step):
    """A step that descends a loss by SGD; steps that leave the optimiser open are a `TrainedStep`.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate.
        schedule, warmup, weight_decay, momentum, clip: see `rarefy.loops.optimise.Training`.
    """

    epochs: Count = 5
    rate: Positive = 0.01
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    warmup: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Positive | None = None

    def training(self, **changes: Any) -> Training:
        """What `rarefy.loops.train` takes: the fields that the step shares with it, with `changes`."""
        own = {f.name for f in dataclasses.fields(self)}
        shared = [f.name for f in dataclasses.fields(Training) if f.name in own]
        return Training(**{name: getattr(self, name) for name in shared} | changes)


@dataclass(frozen=True)
class TrainedStep(DescentStep):
    """A step that trains in any way that `rarefy.loops.train` knows.

    Attributes:
        epochs, rate, schedule, warmup, weight_decay, momentum, clip: as of every step that trains.
        optimiser, average, patience, precision, state_bits: see `rarefy.loops.optimise.Training`.
    """

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: Count | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    state_bits: Literal[8, 32] = 32
