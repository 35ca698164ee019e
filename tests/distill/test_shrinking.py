# SPDX-License-Identifier: Apache-2.0
"""A training set that shrinks by schedule to what is worth most; whole, it is the loader's own."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.shrinking import Shrinking
from rarefy.errors import TaskError


def loader(examples: int = 20, batch: int = 6) -> DataLoader[tuple[torch.Tensor, ...]]:
    x = torch.arange(float(examples))
    return DataLoader(TensorDataset(x, x.long()), batch, shuffle=True)


def test_all_examples_are_the_loader_bit_for_bit() -> None:
    for batches in (loader(), DataLoader(TensorDataset(torch.arange(7.0)), 3)):
        torch.manual_seed(3)
        expected = [[*b] for _ in range(2) for b in batches]
        left = torch.rand(1)
        torch.manual_seed(3)
        shrinking = Shrinking(batches, 1.0, 2)
        found = [[*b] for _ in range(2) for b in shrinking]
        assert torch.rand(1) == left
        for one, other in zip(expected, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("listed", [False, True])
def test_the_schedule_is_kept_and_the_worthy_stay(listed: bool) -> None:
    batches = loader()
    data = [tuple(b) for b in loader()] if listed else batches
    shrinking = Shrinking(data, 0.4, 4)
    assert [shrinking.size(e) for e in range(4)] == [20, 16, 12, 8]
    for epoch in range(4):
        seen = []
        for x, _ in shrinking:
            shrinking.judge(x)  # large numbers are worth most
            seen += x.tolist()
        assert len(seen) == shrinking.size(epoch)
        assert sorted(seen) == list(range(20 - shrinking.size(epoch), 20))
        assert shrinking.steps(epoch) == math.ceil(len(seen) / 6)


def test_streams_are_refused() -> None:
    with pytest.raises(TaskError, match="generator can't shrink"):
        Shrinking((x for x in [1]), 0.5, 2)
