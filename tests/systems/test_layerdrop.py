# SPDX-License-Identifier: Apache-2.0
"""LayerDrop on a small transformer that reads digits row by row: half of the layers go with less harm."""

import copy

import pytest
import torch
from tests.systems.reader import trained_reader
from torch import nn

from rarefy.distill.finetune import Finetune
from rarefy.distill.layer_drop import LayerDrop
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_layers import PruneLayers
from rarefy.recipe import load_recipe
from rarefy.step import Context, Step
from rarefy.task import Task


@pytest.fixture(scope="module")
def reader(digits_task: Task) -> nn.Module:
    return trained_reader(digits_task)


def applied(steps: tuple[Step, ...], model: nn.Module, task: Task) -> nn.Module:
    teacher, model = copy.deepcopy(model).eval(), copy.deepcopy(model)
    for seed, step in enumerate(steps):
        model = step.apply(model, Context(task, teacher, torch.device("cpu"), seed))
    return model


def test_depth_on_demand(reader: nn.Module, digits_task: Task) -> None:
    halved = PruneLayers(criterion="alternate", sparsity=0.5)
    drop = LayerDrop(drop=0.3, epochs=8, rate=0.006, optimiser="adamw")
    plain = Finetune(epochs=8, rate=0.006, optimiser="adamw")
    dropped = applied((drop, halved), reader, digits_task)
    gone = [n for n, m in dropped.named_modules() if type(m) is nn.Identity]
    assert gone == ["layers.1", "layers.3"]
    ours = evaluate(dropped, digits_task).value
    theirs = evaluate(applied((plain, halved), reader, digits_task), digits_task).value
    assert ours > theirs + 0.1
    whole = evaluate(applied((drop,), reader, digits_task), digits_task).value
    assert whole >= evaluate(reader, digits_task).value - 0.01
    assert ours >= whole - 0.15


def test_the_recipe_trains_and_halves() -> None:
    train, prune = load_recipe("layerdrop").steps
    assert isinstance(train, LayerDrop)
    assert train.drop == 0.2
    assert prune == PruneLayers(criterion="alternate", sparsity=0.5)
