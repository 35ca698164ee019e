# SPDX-License-Identifier: Apache-2.0
"""The step on convolutions of all kinds and on a real task."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.errors import RecipeError
from rarefy.forms.mask import mask_of
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_by_inputs import PruneByInputs
from rarefy.prune.prune_weights import PruneWeights
from rarefy.step import Context, Step
from rarefy.task import Task


def applied(step: Step, model: nn.Module, task: Task) -> tuple[nn.Module, dict[str, Any]]:
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {}, None)
    return step.apply(copy.deepcopy(model), context), context.record


class Kinds(nn.Module):
    """Grouped, depthwise, transposed and plain layers, for digits (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 12 * 12, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("granularity", ["element", "2:4"])
def test_every_kind_of_layer_gets_its_zeros_and_keeps_them(
    method: Any, granularity: str, digits_task: Task
) -> None:
    torch.manual_seed(0)
    model = Kinds().eval()
    step = PruneByInputs(method=method, granularity=granularity, examples=64)
    found, record = applied(step, model, digits_task)
    for layer in found.layers:
        if hasattr(layer, "weight"):
            zeros = float((layer.weight == 0).float().mean())
            assert 0.4 <= zeros <= 0.56
            assert torch.equal(mask_of(layer), layer.weight != 0)
    assert len(record["errors"]) == 5
    errors = list(record["errors"].values())
    assert errors[0] > 0  # later layers may read zeros alone, which cost nothing
    assert min(errors) >= 0
    again, _ = applied(step, model, digits_task)
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True)
    )
    with torch.no_grad():
        for p in found.parameters():
            p.add_(1.0)
    assert all(bool((x.weight == 0).any()) for x in found.layers if hasattr(x, "weight"))


def test_a_mask_that_is_there_stays(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = Kinds().eval()
    masked, _ = applied(PruneWeights(sparsity=0.3), model, digits_task)
    found, _ = applied(PruneByInputs(sparsity=0.6, examples=64), masked, digits_task)
    for before, after in zip(masked.layers, found.layers, strict=True):
        if hasattr(before, "weight"):
            assert not (mask_of(after) & ~mask_of(before)).any()


def test_on_digits_it_keeps_more_than_magnitude(
    digits_network: nn.Module, digits_task: Task
) -> None:
    found = {}
    for name, step in {
        "sparsegpt": PruneByInputs(sparsity=0.7),
        "wanda": PruneByInputs(sparsity=0.7, method="wanda"),
        "magnitude": PruneWeights(sparsity=0.7, allocation="local"),
    }.items():
        found[name] = evaluate(applied(step, digits_network, digits_task)[0], digits_task).value
    assert found["sparsegpt"] > max(found["wanda"], found["magnitude"])


def test_bad_input_ends_in_a_sentence(digits_task: Task) -> None:
    with pytest.raises(RecipeError, match="keeps everything"):
        PruneByInputs(granularity="4:4")
    with pytest.raises(RecipeError, match="granularity"):
        PruneByInputs(granularity="4x1")
