# SPDX-License-Identifier: Apache-2.0
"""LayerDrop on a small transformer that reads digits row by row: half of the layers go with less harm."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.distill.finetune import Finetune
from rarefy.distill.layer_drop import LayerDrop
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_layers import PruneLayers
from rarefy.recipe import load_recipe
from rarefy.step import Context, Step
from rarefy.task import Task


class Reader(nn.Module):
    """A transformer over the eight rows of a digit, (B, 1, 8, 8)."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.places = nn.Parameter(0.1 * torch.randn(8, 24))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.squeeze(1)) + self.places
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


@pytest.fixture(scope="module")
def reader(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(Reader(), digits_task, Training(epochs=8, rate=0.006, optimiser="adamw"), seed=0)


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
