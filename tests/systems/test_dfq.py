# SPDX-License-Identifier: Apache-2.0
"""Row dfq: a network that one scale per weight ruins keeps its accuracy, without a look at any data."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.quantize.data_free_int8 import DataFreeInt8
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


class Guarded:
    """Batches that nobody may ask for."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a data-free method looked at data")


class Separable(nn.Module):
    """Depthwise separable convolutions with norms and ReLU6, for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2, self.clip = nn.BatchNorm2d(16), nn.ReLU6()
        self.conv3, self.norm3 = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.norm1(self.conv1(x)))
        x = self.clip(self.norm2(self.conv2(x)))
        return self.fc(self.pool(self.clip(self.norm3(self.conv3(x)))).flatten(1))


@pytest.fixture(scope="module")
def uneven(digits_task: Task) -> nn.Module:
    """A trained network whose channels are brought out of balance without changing what it computes."""
    torch.manual_seed(0)
    model = fit(Separable(), digits_task, Training(epochs=8, rate=0.05))
    before = evaluate(model, digits_task).value
    torch.manual_seed(1)
    with torch.no_grad():
        for conv, norm, following in (
            (model.conv1, model.norm1, model.conv2),
            (model.conv2, model.norm2, model.conv3),
        ):
            k = torch.exp(-2.5 * torch.rand(16))  # smaller, so that ReLU6 clips no more than before
            norm.weight.mul_(k), norm.bias.mul_(k)
            w = following.weight
            w.div_(k.view(1, -1, 1, 1) if w.shape[1] == 16 else k.view(-1, 1, 1, 1))
            assert conv.bias is None
    assert evaluate(model, digits_task).value >= before - 0.02
    return model


def accuracy_of(step: Any, model: nn.Module, task: Task) -> float:
    guarded = replace(task, train=Guarded(), calibration=Guarded(), validation=None)
    context = Context(guarded, copy.deepcopy(model), torch.device("cpu"))
    return evaluate(step.apply(copy.deepcopy(model), context), task).value


def test_the_recipe_keeps_what_plain_rounding_loses(uneven: nn.Module, digits_task: Task) -> None:
    exact = evaluate(uneven, digits_task).value
    (step,) = load_recipe("dfq").steps
    assert not step.needs
    ours = accuracy_of(step, uneven, digits_task)
    assert ours >= exact - 0.02
    coarse = {"granularity": "tensor", "bits": 5}
    plain = DataFreeInt8(equalise=False, correction="none", **coarse)  # type: ignore[arg-type]
    whole = DataFreeInt8(clips="replace", **coarse)  # type: ignore[arg-type]
    losing, keeping = (accuracy_of(s, uneven, digits_task) for s in (plain, whole))
    assert losing <= exact - 0.05
    assert exact - keeping <= 0.5 * (exact - losing)
