# SPDX-License-Identifier: Apache-2.0
"""LASSO channel pruning on a deep network: layers make up for those before them."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import batches_of, evaluate
from rarefy.prune.lasso_channels import LassoChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


class Deep(nn.Module):
    """Five convolutions with batch norms, two of them around a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 16, 16, 16, 16, 16)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.fc = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(x)).relu()
            x = x + y if i in (2, 4) else y
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def deep(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(Deep(), digits_task, Training(epochs=4, rate=0.05), seed=0)


def test_sequential_beats_layer_by_layer_at_depth(deep: nn.Module, digits_task: Task) -> None:
    inputs = list(batches_of(digits_task, "validation"))
    with torch.no_grad():
        wanted = [deep(x) for x in inputs]
    errors = {}
    for sequential in (True, False):
        context = Context(digits_task, copy.deepcopy(deep), torch.device("cpu"), 0)
        step = LassoChannels(sparsity=0.4, sequential=sequential)
        found = step.apply(copy.deepcopy(deep), context)
        widths = [c.out_channels for c in found.convs]  # type: ignore[union-attr]
        assert widths == [10] * 5
        with torch.no_grad():
            pairs = zip(inputs, wanted, strict=True)
            errors[sequential] = sum(float((found(x) - y).square().sum()) for x, y in pairs)
    assert errors[True] < errors[False]


def test_half_of_the_channels_go_without_training(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    (step,) = load_recipe("cp-lasso").steps
    context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    found = step.apply(copy.deepcopy(model), context)
    value = evaluate(found, task).value
    assert parameters(found) < 0.3 * parameters(model)
    assert value >= dense - 0.03
