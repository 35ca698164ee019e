# SPDX-License-Identifier: Apache-2.0
"""A step's fields: legal ranges, spelling, equality."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest
import torch
from torch import nn

from rarefy.errors import RecipeError, nearest
from rarefy.step import Context, Count, Fraction, OpenFraction, Patterns, Positive, Step


@dataclass(frozen=True)
class ScaleWeights2D(Step):
    """A method with one field of every kind."""

    factor: Positive = 1.0
    share: Fraction = 0.5
    inner: OpenFraction = 0.5
    rounds: Count = 1
    mode: Literal["all", "some"] = "all"
    layers: Patterns = "*"


@dataclass(frozen=True)
class Needy(Step):
    """A method whose field has no default."""

    rank: Count


def test_key_is_the_class_in_kebab_case() -> None:
    assert ScaleWeights2D.key() == "scale-weights2-d"
    assert Needy.key() == "needy"


def test_settings_hold_what_differs_from_the_defaults() -> None:
    assert ScaleWeights2D().settings() == {}
    step = ScaleWeights2D(factor=2, layers=("a", 3))
    assert step.settings() == {"factor": 2.0, "layers": ["a", 3]}
    assert isinstance(step.factor, float)
    assert str(step) == "ScaleWeights2D(factor=2.0, layers=['a', 3])"
    assert Needy(4).settings() == {"rank": 4}


def test_equal_fields_make_equal_steps() -> None:
    assert ScaleWeights2D(factor=2) == ScaleWeights2D(factor=2.0)
    assert hash(ScaleWeights2D()) == hash(ScaleWeights2D(share=0.5))
    assert ScaleWeights2D(layers=["a"]) == ScaleWeights2D(layers=("a",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"factor": 0}, "factor=0.0 is not allowed: input should be greater than 0"),
        ({"share": 1.01}, "share=1.01 is not allowed: input should be less than or equal to 1"),
        ({"share": -0.1}, "share=-0.1 is not allowed: input should be greater than or equal to 0"),
        ({"inner": 1}, "inner=1.0 is not allowed: input should be less than 1"),
        ({"rounds": 0}, "rounds=0 is not allowed: input should be greater than or equal to 1"),
        ({"rounds": 1.5}, "rounds=1.5 is not allowed"),
        ({"mode": "few"}, "mode='few' is not allowed: input should be 'all' or 'some'"),
        ({"factor": "big"}, "factor='big' is not allowed"),
    ],
)
def test_values_out_of_range(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ScaleWeights2D(**fields)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("scale-weights2-d: ")
    assert complaint.split("=")[0] in message
    assert complaint.partition(" is not allowed")[2] in message
    assert "\n" not in message


def test_steps_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ScaleWeights2D().factor = 2.0  # type: ignore[misc]


def test_a_step_without_apply_says_so() -> None:
    model = nn.Linear(1, 1)
    context = Context(None, model, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Needy defines no apply"):
        Needy(1).apply(model, context)


def test_nearest_guesses_or_lists() -> None:
    assert nearest("sparcity", ["sparsity", "scope"]) == "; did you mean 'sparsity'?"
    assert nearest("xyz", ["sparsity", "scope"]) == "; known: scope, sparsity"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_finite_number_is_refused(value: float) -> None:
    @dataclass(frozen=True)
    class Unbounded(Step):
        """Any number.

        Attributes:
            level: which.
        """

        level: float = 0.0

        def apply(self, model: nn.Module, context: Context) -> nn.Module:
            return model

    with pytest.raises(RecipeError, match=f"level={value} is not allowed"):
        Unbounded(level=value)
