# SPDX-License-Identifier: Apache-2.0
"""Training from scratch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import TaskError
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.task import Task


def test_a_network_learns_its_task(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    assert evaluate(model, task).value > 0.95
    assert not model.training


def test_the_same_seed_gives_the_same_weights() -> None:
    x = torch.randn(32, 1, 8, 8)
    batches = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), 8, shuffle=True)
    task = Task("sign", x[:2], batches, batches)

    def trained(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        fit(model, task, Training(epochs=2), seed=seed)
        return model[1].weight.detach()

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))


def test_a_task_without_training_data_is_refused() -> None:
    with pytest.raises(TaskError, match=r"give Task\(train"):
        fit(nn.Linear(1, 1), Task("t", torch.zeros(1, 1)), Training())
