# SPDX-License-Identifier: Apache-2.0
"""Pruning that preserves knowledge: more is recovered from little data than by labels, or without."""

import copy
import dataclasses
import itertools
from statistics import mean

import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.distill.finetune import Finetune
from rarefy.measure.quality import evaluate
from rarefy.prune.preserve_features import PreserveFeatures
from rarefy.recipe import load_recipe
from rarefy.step import Context, Step
from rarefy.task import Task


def test_more_is_recovered_from_few_examples_than_by_labels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    prune = load_recipe("kd-prune").steps[0]
    small, _ = apply_step(prune, copy.deepcopy(model), Context(task, teacher, torch.device("cpu")))
    found: dict[str, list[float]] = {"labels": [], "knowledge": []}
    steps: dict[str, Step] = {
        "labels": Finetune(epochs=40, rate=0.02),
        "knowledge": PreserveFeatures(epochs=40, rate=0.02),
    }
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        batch = next(iter(task.batches("train")))
        little = dataclasses.replace(task, train=[tuple(t[:13] for t in batch)], validation=None)
        for name, step in steps.items():
            ctx = Context(little, teacher, torch.device("cpu"), seed)
            result = step.apply(copy.deepcopy(small), ctx)
            found[name].append(evaluate(result, task).value)
    assert mean(found["knowledge"]) > mean(found["labels"]) + 0.005


def test_the_recipe_runs_without_labels(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    inputs = [x for x, _ in itertools.islice(task.batches("train"), 12)]
    bare = dataclasses.replace(task, train=inputs, validation=None, test=None, labelled=False)
    teacher = copy.deepcopy(model).eval()
    before = evaluate(model, task).value
    recipe = load_recipe("kd-prune")
    recipe.check(bare)
    for number, step in enumerate(recipe.steps):
        model, _ = apply_step(step, model, Context(bare, teacher, torch.device("cpu"), number))
    assert model.fc1.weight.shape == (32, 256)  # type: ignore[union-attr]
    assert evaluate(model, task).value > before - 0.05
