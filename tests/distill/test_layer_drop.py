# SPDX-License-Identifier: Apache-2.0
"""How many layers run in training and in eval mode, and that nothing of the dropping stays behind."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from rarefy.distill.layer_drop import LayerDrop, dropping
from rarefy.loops.blocks import blocks_of
from rarefy.step import Context
from rarefy.task import Task


class Row(nn.Module):
    """A residual block on rows of pixels, which counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.ran = nn.Linear(64, 16), nn.Linear(16, 64), 0

    def forward(self, x: Tensor) -> Tensor:
        self.ran += 1
        return x + self.fc2(self.fc1(x).relu())


class Rows(nn.Module):
    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Row() for _ in range(depth)))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x.flatten(1)))


def test_depth_is_binomial_in_training_and_whole_in_evaluation() -> None:
    torch.manual_seed(0)
    model, x = Rows(), torch.randn(2, 1, 8, 8)
    blocks = blocks_of(model, x)
    assert len(blocks) == 6
    depths: Counter[int] = Counter()
    with dropping(blocks, 0.2):
        model.train()
        for _ in range(600):
            for row in model.blocks:
                row.ran = 0  # type: ignore[assignment]
            model(x)
            depths[sum(row.ran for row in model.blocks)] += 1  # type: ignore[misc]
        model.eval()
        for row in model.blocks:
            row.ran = 0  # type: ignore[assignment]
        whole = model(x)
        assert [row.ran for row in model.blocks] == [1] * 6
    mean = sum(n * times for n, times in depths.items()) / 600
    assert abs(mean - 0.8 * 6) < 4 * (6 * 0.2 * 0.8 / 600) ** 0.5
    assert "forward" not in vars(model.blocks[0])
    assert torch.equal(model.train()(x), whole)


def test_training_is_repeatable_and_leaves_nothing_behind(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = Rows(3)
    found = []
    for draw in range(2):
        torch.rand(draw + 1)
        context = Context(digits_task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
        found.append(LayerDrop(drop=0.5, epochs=1).apply(copy.deepcopy(model), context))
        assert context.record["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
        assert not found[-1].training
        assert not any("forward" in vars(m) for m in found[-1].modules())
    pairs = zip(found[0].parameters(), found[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(found[0].head.weight, model.head.weight)  # type: ignore[union-attr, arg-type]
