# SPDX-License-Identifier: Apache-2.0
"""Row data-privacy: the guard raises at the first look, and methods that fit run on guarded tasks."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.errors import TaskError
from rarefy.measure.quality import evaluate
from rarefy.recipe import Recipe, load_recipe, method
from rarefy.step import Context
from rarefy.systems.data_access import FEW, LEVELS, allowed, fitting, guarded
from rarefy.task import Task


class Counting:
    """Batches that count how often they are opened."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.opened = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.opened += 1
        return iter(self.batches)


@pytest.mark.parametrize("access", ["none", "few", "unlabelled"])
def test_what_is_not_allowed_raises(access: Any, digits_task: Task) -> None:
    task = guarded(digits_task, access)
    assert not task.labelled
    for role in ("validation", "test", *(["train"] if access != "unlabelled" else [])):
        with pytest.raises(TaskError, match=f"data: {access}"):
            next(iter(task.batches(role)))
    if access == "none":
        with pytest.raises(TaskError, match="calibration"):
            next(iter(task.batches("calibration")))
        assert not torch.equal(task.example, digits_task.example)
        assert task.example.shape == digits_task.example.shape
    else:
        batches = list(task.batches("calibration"))
        assert all(isinstance(batch, torch.Tensor) for batch in batches)
        seen = sum(len(batch) for batch in batches)
        assert 0 < seen <= FEW if access == "few" else seen > FEW


def test_unknown_levels_are_named(digits_task: Task) -> None:
    with pytest.raises(TaskError, match="'non' is no level"):
        guarded(digits_task, "non")  # type: ignore[arg-type]


def test_levels_offer_more_and_more() -> None:
    offers = [set(fitting(level)) for level in LEVELS]
    assert all(less <= more for less, more in pairwise(offers))
    assert {"similar-neurons", "fixed-point", "equalise", "prune-weights"} <= offers[0]
    assert "static-int8" in offers[1] - offers[0]
    assert "finetune" in offers[3] - offers[2]


def test_recipes_are_refused_with_what_they_need() -> None:
    recipe = Recipe((method("finetune")(), method("fixed-point")()))
    assert allowed(recipe, "unlabelled") == ["finetune needs labels"]
    assert allowed(recipe, "full") == []
    assert allowed(load_recipe("data-privacy"), "none") == []


@pytest.mark.parametrize("name", ["similar-neurons", "fixed-point", "prune-weights"])
def test_methods_that_fit_touch_nothing(name: str, digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    assert name in fitting("none")
    watched = {role: Counting(getattr(task, role)) for role in ("train", "validation", "test")}
    sealed = guarded(replace(task, **watched), "none")  # type: ignore[arg-type]
    context = Context(sealed, copy.deepcopy(model), torch.device("cpu"), 0, {})
    apply_step(method(name)(), model, context)
    assert all(batches.opened == 0 for batches in watched.values())


def test_the_recipe_runs_without_data(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before = evaluate(model, task).value
    context = Context(guarded(task, "none"), copy.deepcopy(model), torch.device("cpu"), 0, {})
    for step in load_recipe("data-privacy").steps:
        model, _ = apply_step(step, model, context)
    assert evaluate(model, task).value > before - 0.1
