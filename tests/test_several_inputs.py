# SPDX-License-Identifier: Apache-2.0
"""Networks of two inputs go all the way, however a task hands them over."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rarefy as rf
from rarefy.measure.quality import batches_of, evaluate
from rarefy.task import Inputs, Task

X, Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.randn(64, 4)
LABELS = torch.arange(64) % 5


class Joining(nn.Module):
    """The sum of two layers' outputs, then another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(y)))


def task(example: Inputs, batches: Iterable[Any], labelled: bool) -> Task:
    return Task("two", example, batches, batches, labelled=labelled)


PARTS = [slice(start, start + 16) for start in range(0, 64, 16)]
PAIR, NAMED = (X[:2], Y[:2]), {"x": X[:2], "y": Y[:2]}
TASKS = {
    "pairs": task(PAIR, [(X[p], Y[p]) for p in PARTS], False),
    "lists": task(PAIR, DataLoader(TensorDataset(X, Y), 16), False),
    "labelled pairs": task(PAIR, [((X[p], Y[p]), LABELS[p]) for p in PARTS], True),
    "pairs whose labels are not looked at": task(
        PAIR, [((X[p], Y[p]), LABELS[p]) for p in PARTS], False
    ),
    "names": task(NAMED, [{"x": X[p], "y": Y[p]} for p in PARTS], False),
    "labelled names": task(NAMED, [({"x": X[p], "y": Y[p]}, LABELS[p]) for p in PARTS], True),
}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Joining().eval()


@pytest.mark.parametrize("given", TASKS.values(), ids=TASKS)
def test_batches_are_inputs_and_not_targets(given: Task, network: nn.Module) -> None:
    found = [tuple(inputs.values()) if isinstance(inputs, dict) else inputs
             for inputs in batches_of(given, "calibration")]  # fmt: skip
    assert torch.equal(torch.cat([x for x, _ in found]), X)
    assert torch.equal(torch.cat([y for _, y in found]), Y)
    right = (network(X, Y).argmax(1) == LABELS).float().mean() if given.labelled else 1.0
    assert evaluate(network, given, reference=network).value == pytest.approx(float(right))


@pytest.mark.parametrize("given", TASKS.values(), ids=TASKS)
def test_the_whole_way(given: Task, network: nn.Module) -> None:
    steps = [rf.PruneChannels(sparsity=0.25), rf.Distill(epochs=1), rf.StaticInt8()]
    result = rf.compress(network, given, steps)
    assert result.document["parity"]["passed"]
    last = result.measurements[-1]
    assert last["memory_bytes"] is not None
    assert last["latency_ms"]["median"] > 0
    assert last["parameters"] < result.measurements[0]["parameters"]


@pytest.mark.parametrize("name", ["pairs", "names"])
def test_limits_of_time_and_memory(name: str, network: nn.Module) -> None:
    budget = rf.Budget.parse("size=4/5,latency=1000,memory=1000000000")
    result = rf.compress(network, TASKS[name], budget=budget)
    assert {limit["name"] for limit in result.document["budget"]["limits"]} == {
        "size",
        "latency",
        "memory",
    }
    assert result.met
