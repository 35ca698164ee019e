# SPDX-License-Identifier: Apache-2.0
"""Candidates as recipes, and guesses that land where they should."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.share_weights import ShareWeights
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.recipe import Recipe
from rarefy.search.space import (
    LEAST,
    REPAIRS,
    STORAGES,
    Candidate,
    Space,
    coded_share,
    density_for,
    first_guesses,
    suggest,
)
from rarefy.search.study import constrained_study, silence


def test_a_candidate_as_steps() -> None:
    candidate = Candidate(0.1, "lamp", "shared", 5, "finetune", 0.02)
    assert candidate.steps(epochs=16, rounds=4) == (
        PruneWeights(
            sparsity=0.9, allocation="lamp", schedule="cubic", rounds=4, epochs=2, rate=0.02
        ),
        Finetune(epochs=16, rate=0.02),
        ShareWeights(bits=5, epochs=4),
    )
    assert candidate.steps(epochs=1)[0] == PruneWeights(sparsity=0.9, allocation="lamp", rate=0.02)


def test_what_is_not_pruned_is_not_repaired() -> None:
    assert Candidate(0.95, "global", "int8", 8, "distill", 0.01).steps(9, 4) == (StaticInt8(),)
    assert Candidate(1.0, "global", "dense", 8, "distill", 0.01).steps(9, 4) == ()


def test_without_training_data_nothing_trains() -> None:
    steps = Candidate(0.5, "erk", "shared", 4, "", 0.01).steps(9, 4)
    assert steps == (
        PruneWeights(sparsity=0.5, allocation="erk", rate=0.01),
        ShareWeights(bits=4, epochs=0, initialisation="exact"),
    )
    assert all("train" not in step.needs for step in steps)


@given(st.floats(1e-4, 0.5), st.integers(2, 8))
def test_the_guessed_density_is_the_largest_that_fits(share: float, bits: int) -> None:
    found = density_for(share, bits)
    assert LEAST <= found <= 1
    assert coded_share(found, bits) <= share * (1 + 1e-9) or found == LEAST
    larger = [found + (1 - found) * step / 50 for step in range(1, 51)]
    assert all(coded_share(d, bits) > share * (1 - 1e-6) for d in larger if found < 1)


def test_coded_share_by_hand() -> None:
    assert coded_share(1.0, 9) == 8 / 32
    assert coded_share(0.5, 5) == (1 + 0.5 * 4) / 32
    entropy = -0.1 * math.log2(0.1) - 0.9 * math.log2(0.9)
    assert coded_share(0.1, 5) == pytest.approx((entropy + 0.4) / 32)


@pytest.mark.parametrize("share", [None, 0.5, 0.05, 1e-4])
@pytest.mark.parametrize(
    "space",
    [Space(), Space(("int8",)), Space(STORAGES[:2]), Space(repairs=()), Space(repairs=REPAIRS[:1])],
)
def test_every_guess_and_every_draw_is_a_recipe(space: Space, share: float | None) -> None:
    with silence():
        study = constrained_study(0, 4)
        guesses = first_guesses(space, share)
        for guess in guesses:
            study.enqueue_trial(guess)
        for number in range(len(guesses) + 12):
            trial = study.ask()
            candidate = suggest(trial, space)
            if number < len(guesses):
                assert candidate.storage == guesses[number]["storage"]
                assert candidate.density == pytest.approx(guesses[number]["density"])
            assert candidate.storage in space.storages
            recipe = candidate.recipe(4, 4)
            assert Recipe.from_yaml(recipe.to_yaml()).steps == recipe.steps
            if not space.repairs:
                assert not any(isinstance(s, (Distill, Finetune)) for s in recipe.steps)
            study.tell(trial, float(number))
