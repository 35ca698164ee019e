# SPDX-License-Identifier: Apache-2.0
"""Neurons of a trained network are merged without data: far better than deleting; the knee."""

import copy

import pytest
import torch
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.similar_neurons import SimilarNeurons
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


@pytest.fixture(scope="module")
def wide(digits_task: Task) -> nn.Module:
    """64-256-10, trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    return fit(model, digits_task, Training(epochs=20, rate=0.05), seed=0)


def test_half_of_the_neurons_go_without_data(wide: nn.Module, digits_task: Task) -> None:
    dense = evaluate(wide, digits_task).value
    context = Context(digits_task, copy.deepcopy(wide), torch.device("cpu"), 0)
    merged = SimilarNeurons(sparsity=0.5, scaled=True).apply(copy.deepcopy(wide), context)
    assert context.record["cut"] == {"1": 128}
    kept = evaluate(merged, digits_task).value
    assert kept >= dense - 0.01
    random = copy.deepcopy(wide)
    coupling = couple(random, digits_task.example)
    units = torch.randperm(256, generator=torch.Generator().manual_seed(0))[:128]
    cut(random, coupling, [(coupling.group("1"), units)], digits_task.example)
    assert evaluate(random, digits_task).value < kept - 0.01


def test_the_knee_takes_what_costs_little(wide: nn.Module, digits_task: Task) -> None:
    (step,) = load_recipe("srinivas").steps
    context = Context(digits_task, copy.deepcopy(wide).eval(), torch.device("cpu"), 0)
    found = step.apply(copy.deepcopy(wide), context)
    value = evaluate(found, digits_task).value
    assert 0.3 * parameters(wide) < parameters(found) < 0.8 * parameters(wide)
    assert value >= evaluate(wide, digits_task).value - 0.02
