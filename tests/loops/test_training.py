# SPDX-License-Identifier: Apache-2.0
"""The fields of training that steps share, and what the loop is given."""

import dataclasses
from dataclasses import dataclass

import pytest
from torch import nn

from rarefy.errors import RecipeError
from rarefy.loops.optimise import Training
from rarefy.loops.training import DescentStep, TrainedStep
from rarefy.step import Context, Count


@dataclass(frozen=True)
class Plain(TrainedStep):
    """A step with a default of its own and one more field."""

    epochs: Count = 3
    share: float = 0.5

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        return model


def test_the_loop_is_given_what_the_step_says() -> None:
    step = Plain(rate=0.3, optimiser="adam", patience=2)
    assert step.training(schedule="linear") == Training(
        epochs=3, rate=0.3, optimiser="adam", patience=2, schedule="linear", weight_decay=1e-4
    )


def test_every_field_of_training_is_a_field_of_the_step() -> None:
    ours = {f.name for f in dataclasses.fields(TrainedStep)}
    assert ours == {f.name for f in dataclasses.fields(Training)}


def test_descent_leaves_the_optimiser_to_the_loop() -> None:
    names = {f.name for f in dataclasses.fields(DescentStep)}
    assert not names & {"optimiser", "average", "patience", "precision"}
    assert DescentStep(rate=0.2).training().optimiser == "sgd"


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"rate": 0}, {"momentum": 1}, {"warmup": 1.5}, {"average": 1.0}]
)
def test_ranges_hold_for_all(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Plain(**wrong)  # type: ignore[arg-type]
