# SPDX-License-Identifier: Apache-2.0
"""Blocks that do nothing go first and for nothing; blocks that change the shape are refused."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.measure.counts import macs
from rarefy.prune.prune_layers import PruneLayers, alternate, influence, output_change
from rarefy.step import Context
from rarefy.task import Task, tensors_of
from rarefy.zoo.models import load_model


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))


def test_every_other_layer() -> None:
    assert alternate(6, 0.5) == [1, 3, 5]
    assert alternate(12, 0.25) == [3, 7, 11]
    assert alternate(7, 0.34) == [1, 3, 5]


def test_influence_and_output_change() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    assert abs(influence([(x, 2 * x)])) < 1e-9
    assert abs(influence([(x, -x), (x, x)]) - 1) < 1e-9
    y = torch.randn(10, 3)
    assert output_change([y], [y]) == 0
    mean = torch.full_like(y, float(y.mean()))
    assert abs(output_change([y], [mean]) - 1) < 1e-6


class Row(nn.Module):
    """A residual block on rows of pixels."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 16), nn.Linear(16, 64)
        with torch.no_grad():
            self.fc2.weight.mul_(gain)
            self.fc2.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(x).relu())


class Rows(nn.Module):
    def __init__(self, gains: tuple[float, ...]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Row(g) for g in gains))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x.flatten(1)))


@pytest.mark.parametrize("criterion", ["output", "influence"])
def test_empty_branches_go_first_and_nothing_changes(criterion: str, digits_task: Task) -> None:
    torch.manual_seed(0)
    model = Rows((1.0, 0.0, 2.0, 0.0)).eval()
    x = digits_task.example
    before, ctx = model(x), context(model, digits_task)
    step = PruneLayers(sparsity=0.5, criterion=criterion, examples=64)  # type: ignore[arg-type]
    after = step.apply(model, ctx)
    assert {told["block"] for told in ctx.record["removed"]} == {"blocks.1", "blocks.3"}
    assert all(abs(told["importance"]) < 1e-9 for told in ctx.record["removed"])
    assert torch.equal(after(x), before)
    assert macs(after, x) < macs(Rows((1.0,) * 4), x)


def test_by_loss_the_network_without_labels_imitates_the_original(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = Rows((1.0, 0.0, 2.0, 3.0)).eval()
    batches = [x for x, _ in list(digits_task.batches("validation"))[:2]]
    task = replace(
        digits_task, labelled=False, train=batches, validation=batches, calibration=batches
    )
    ctx = context(model, task)
    PruneLayers(sparsity=0.3, criterion="loss").apply(model, ctx)
    assert [told["block"] for told in ctx.record["removed"]] == ["blocks.1"]


def test_blocks_that_change_the_shape_are_refused(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = load_model("zoo:resnet20@cifar10")
    images = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    task = replace(
        digits_task, example=images[0], train=images, validation=images, test=images,
        calibration=images, labelled=False,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"'layer2.0' turns shape \(2, 16, 32, 32\) into"):
        PruneLayers(blocks="layer2.*").apply(copy.deepcopy(model), context(model, task))
    with pytest.raises(ModelError, match="no block that could be removed"):
        PruneLayers(keep="layer*").apply(copy.deepcopy(model), context(model, task))
    found = PruneLayers(criterion="alternate", sparsity=0.5).apply(
        copy.deepcopy(model), context(model, task)
    )
    gone = [name for name, m in found.named_modules() if type(m) is nn.Identity]
    assert gone == ["layer1.1", "layer2.1", "layer3.1"]
    assert found(images[0]).shape == (2, 10)


def test_a_torch_encoder_keeps_the_layer_that_it_looks_into(digits_task: Task) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 16), nn.TransformerEncoder(layer, 3))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(128, 10)).eval()
    ctx = context(model, digits_task)
    found = PruneLayers(sparsity=0.5, criterion="influence", examples=32).apply(model, ctx)
    assert any("'2.layers.0' can't be removed" in note for note in ctx.record["notes"])
    assert len(ctx.record["removed"]) == 1
    x = tensors_of(digits_task.example)[0]
    assert found(x).shape == (len(x), 10)
