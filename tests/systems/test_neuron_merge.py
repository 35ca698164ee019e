# SPDX-License-Identifier: Apache-2.0
"""Correlated neurons of a trained network are merged: better than deleting them."""

import copy

import torch
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut
from rarefy.measure.counts import parameters
from rarefy.measure.quality import batches_of, evaluate
from rarefy.prune.merge_neurons import MergeNeurons
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def test_merging_beats_deleting_the_same_number(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    inputs = list(batches_of(task, "validation"))
    with torch.no_grad():
        wanted = torch.cat([model(x) for x in inputs])
    context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    merged = MergeNeurons(sparsity=0.5, layers="fc1").apply(copy.deepcopy(model), context)
    deleted = copy.deepcopy(model)
    coupling = couple(deleted, task.example)
    group = coupling.group("fc1")
    weak = model.fc1.weight.square().sum(1) * model.fc2.weight.square().sum(0)  # type: ignore[union-attr, operator]
    cut(deleted, coupling, [(group, weak.argsort()[:32])], task.example)
    with torch.no_grad():
        off = [
            (torch.cat([m(x) for x in inputs]) - wanted).square().sum() for m in (merged, deleted)
        ]
    assert off[0] < 0.5 * off[1]
    assert context.record["cut"] == {"fc1": 32}


def test_a_third_of_the_units_is_merged(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    (step,) = load_recipe("neuron-merge").steps
    context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    found = step.apply(copy.deepcopy(model), context)
    value = evaluate(found, task).value
    assert parameters(found) < 0.55 * parameters(model)
    assert value >= dense - 0.02
