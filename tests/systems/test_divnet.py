# SPDX-License-Identifier: Apache-2.0
"""Diversity networks: half of the neurons go without retraining, which fusing makes possible."""

import copy

import pytest
import torch
from torch import nn

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.diverse_neurons import DiverseNeurons
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


@pytest.fixture(scope="module")
def wide(digits_task: Task) -> nn.Module:
    """64-256-10, trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    return fit(model, digits_task, Training(epochs=20, rate=0.05), seed=0)


def test_fusing_saves_what_pruning_costs(wide: nn.Module, digits_task: Task) -> None:
    def accuracy(fusing: bool, sparsity: float) -> float:
        context = Context(digits_task, copy.deepcopy(wide), torch.device("cpu"), 0)
        step = DiverseNeurons(sparsity=sparsity, fusing=fusing)
        return evaluate(step.apply(copy.deepcopy(wide), context), digits_task).value

    assert accuracy(True, 0.9) > accuracy(False, 0.9) + 0.1


def test_half_of_the_neurons_go_without_retraining(wide: nn.Module, digits_task: Task) -> None:
    (step,) = load_recipe("divnet").steps
    context = Context(digits_task, copy.deepcopy(wide).eval(), torch.device("cpu"), 0)
    found = step.apply(copy.deepcopy(wide), context)
    value = evaluate(found, digits_task).value
    assert parameters(found) < 0.51 * parameters(wide)
    assert value >= evaluate(wide, digits_task).value - 0.01
