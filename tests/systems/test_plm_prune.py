# SPDX-License-Identifier: Apache-2.0
"""Heads, neurons and layers of a small trained transformer, which reads digits row by row."""

import copy

import pytest
import torch
from tests.systems.reader import trained_reader
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.attention import split_attention
from rarefy.prune.prune_layers import PruneLayers
from rarefy.prune.prune_transformer import PruneTransformer
from rarefy.recipe import load_recipe
from rarefy.step import Context, Step
from rarefy.task import Task


@pytest.fixture(scope="module")
def reader(digits_task: Task) -> nn.Module:
    return trained_reader(digits_task, epochs=10, width=32)


def applied(step: Step, model: nn.Module, teacher: nn.Module, task: Task) -> nn.Module:
    return step.apply(copy.deepcopy(model), Context(task, teacher, torch.device("cpu"), 0))


def test_gates_know_what_is_not_needed(reader: nn.Module, digits_task: Task) -> None:
    dense = evaluate(reader, digits_task).value
    by_fisher = applied(PruneTransformer(), reader, reader, digits_task)
    kept = evaluate(by_fisher, digits_task).value
    assert kept >= dense - 0.1
    untuned = applied(PruneTransformer(tune=False), reader, reader, digits_task)
    shapes = {n: p.shape for n, p in untuned.named_parameters()}
    random = copy.deepcopy(reader)  # as small, but of other units
    split_attention(random)
    coupling, draw = couple(random, digits_task.example), torch.Generator().manual_seed(0)
    cuts = []
    for group in coupling.groups:
        member = next(m for m in group.members if m.role == "out")
        before = dict(random.named_parameters())[member.name].shape[member.axis]
        left = shapes[member.name][member.axis] * group.size // before
        cuts.append((group, torch.randperm(group.size, generator=draw)[: group.size - left]))
    cut(random, coupling, [c for c in cuts if len(c[1])], digits_task.example)
    assert parameters(random) <= 1.02 * parameters(untuned)
    assert kept > evaluate(random, digits_task).value + 0.05


def test_layers_heads_and_neurons_by_recipe(reader: nn.Module, digits_task: Task) -> None:
    dense, found = evaluate(reader, digits_task).value, reader
    layers, units, distill = load_recipe("plm-prune").steps
    assert isinstance(layers, PruneLayers)
    assert isinstance(units, PruneTransformer)
    for step in (layers, units, distill):
        found = applied(step, found, reader, digits_task)
    assert parameters(found) < 0.55 * parameters(reader)
    assert evaluate(found, digits_task).value >= dense - 0.03
