# SPDX-License-Identifier: Apache-2.0
"""The hyper-parameters that every step which trains has in common, as fields of a recipe."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rarefy.loops.optimise import Training
from rarefy.step import Count, Fraction, Patterns, Positive, Step


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
        optimiser, average, patience, precision, state_bits, resolution: see `rarefy.loops.optimise.Training`.
    """

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: Count | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    state_bits: Literal[8, 32] = 32
    resolution: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True)
class LearningStep(Step):
    """A step that learns what weights become; without an epoch it needs no data.

    Attributes:
        epochs: of training; 0 for none.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    epochs: Annotated[int, Field(ge=0)] = 20
    rate: Positive = 5e-3
    alpha: Fraction | None = None
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})
    writes: ClassVar[str | None] = "codebook"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs:
            object.__setattr__(self, "needs", frozenset())
