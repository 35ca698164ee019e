# SPDX-License-Identifier: Apache-2.0
"""Half of the parameters of real networks, as whole channels: counted, proven, and what a runtime gets."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model


def unlabelled(size: int) -> Task:
    draw = torch.Generator().manual_seed(0)
    x = [torch.randn(8, 3, size, size, generator=draw) for _ in range(2)]
    return Task("random", example=x[0][:2], train=x, calibration=x, labelled=False)


class Inverted(nn.Module):
    """Two inverted residuals of MobileNetV2 between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(),
                nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU6(),
                nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16),
            )
            for _ in range(2)
        )  # fmt: skip
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", ["resnet20", "inverted"])
def test_half_of_the_parameters_go_as_channels(kind: str) -> None:
    torch.manual_seed(0)
    net = load_model("zoo:resnet20@cifar10") if kind == "resnet20" else Inverted().eval()
    task = unlabelled(32)
    ctx = Context(task, net, torch.device("cpu"), 0)
    (step, *_) = load_recipe("mobilenet-resnet-struct").steps
    found = step.apply(copy.deepcopy(net), ctx)
    share = parameters(found) / parameters(net)
    assert 0.45 < share <= 0.5
    assert macs(found, task.example) < 0.7 * macs(net, task.example)
    assert ctx.record["difference"] <= 1e-4
    assert not any("mask" in name for name, _ in found.named_buffers())
    program = OnnxRuntime(export_onnx(found, task.example))
    with torch.no_grad():
        expected = found(task.example)
    assert torch.allclose(program(task.example), expected, atol=1e-4 * float(expected.abs().max()))


def test_training_brings_accuracy_back(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    before, size = evaluate(model, task).value, parameters(model)
    ctx = Context(task, copy.deepcopy(model), torch.device("cpu"), 0)
    for step in load_recipe("mobilenet-resnet-struct").steps:
        short = dataclasses.replace(step, **({"epochs": 4} if step.key() == "distill" else {}))
        model = short.apply(model, ctx)
    assert parameters(model) <= 0.5 * size
    assert evaluate(model, task).value >= before - 0.02
