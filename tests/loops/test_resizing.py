# SPDX-License-Identifier: Apache-2.0
"""Images grow from a share of their size to the whole, and keep their means."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.loops.resizing import GROWN, resized
from rarefy.task import Task


@pytest.mark.parametrize(("progress", "side"), [(0.0, 16), (GROWN / 2, 24), (GROWN, 32), (1.0, 32)])
def test_images_grow(progress: float, side: int) -> None:
    found = resized(torch.ones(2, 3, 32, 16), progress, 0.5)
    assert found.shape == (2, 3, side, side // 2)
    assert torch.allclose(found, torch.ones(()))


def test_other_inputs_are_left_alone() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert resized(x, 0.0, 1.0) is x
    features = torch.randn(2, 8)
    assert resized(features, 0.0, 0.5) is features
    pair = (x, x)
    assert resized(pair, 0.0, 0.5) is pair


def test_a_training_sees_images_of_growing_size() -> None:
    seen: list[int] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled():
                seen.append(x.shape[-1])
            return self.conv(x).mean((2, 3))

    batches = [(torch.randn(4, 1, 16, 16), torch.randint(0, 3, (4,))) for _ in range(5)]
    task = Task("noise", batches[0][0], train=batches, loss=F.cross_entropy)
    fit(Net(), task, Training(epochs=4, resolution=0.5))
    assert seen == sorted(seen)
    assert set(seen) == {8, 12, 16}
