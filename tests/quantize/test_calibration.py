# SPDX-License-Identifier: Apache-2.0
"""What is seen at call sites while a network runs, and networks that can't be watched."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.quantize.calibration import calibrate, every, in_memory_order, look
from rarefy.task import Task

CPU = torch.device("cpu")


class Add(nn.Module):
    """Adds a number, by another way if the first value is large."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return y * 2 if float(x.flatten()[0]) > 100 else y + 1


def task_of(*batches: Tensor) -> Task:
    return Task("numbers", batches[0], calibration=batches, validation=batches, labelled=False)


def test_sites_see_every_value_once() -> None:
    task = task_of(torch.arange(6.0).view(3, 2), torch.full((3, 2), -4.0))
    groups = (("input#0",), (":add#0", ":add#1"))
    found = calibrate(Add(), task, groups, 100, CPU)
    assert (found["input#0"].low, found["input#0"].high) == (-4, 5)
    assert found["input#0"].total() == 12
    assert (found[":add#0"].low, found[":add#0"].high) == (-3, 7)
    assert found[":add#0"].total() == 24


@settings(deadline=None, max_examples=50)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    step=st.integers(1, 9),
    data=st.data(),
)
def test_the_same_entries_are_taken_however_they_lie(shape, step, data) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    x = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    stored = x.permute(order).contiguous().permute([order.index(i) for i in range(len(shape))])
    assert torch.equal(stored, x)
    assert torch.equal(every(stored, step), x.flatten(1)[:, ::step])
    assert in_memory_order(stored).is_contiguous()


def test_no_more_examples_are_seen_than_asked_for() -> None:
    task = task_of(*(torch.full((4, 2), float(i)) for i in range(5)))
    found = calibrate(Add(), task, (("input#0",),), 8, CPU)
    assert found["input#0"].total() == 16


def test_floats_are_told_from_integers() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).argmax(1) + 1

    calls, floating = look(Mixed(), torch.randn(2, 3))
    assert floating == {"input#0", ":mul#0"}
    assert [call.function for call in calls.calls] == ["mul", "argmax", "add"]


def test_another_way_on_calibration_data_is_told() -> None:
    task = task_of(torch.zeros(2, 2), torch.full((2, 2), 200.0))
    with pytest.raises(ModelError, match=r"call ':add#1'.*not made on calibration batch 2"):
        calibrate(Add(), task, ((":add#1",),), 100, CPU)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_values_are_told_with_their_place(broken) -> None:
    task = task_of(torch.zeros(2, 2), torch.tensor([[0.0, broken]]))
    with pytest.raises(ModelError, match="':add#0' gives NaN or infinity on calibration batch 2"):
        calibrate(Add(), task, ((":add#0",),), 100, CPU)


def test_no_batch_is_told() -> None:
    empty = dataclasses.replace(task_of(torch.zeros(2, 2)), calibration=iter(()))
    with pytest.raises(TaskError, match="task 'numbers' yields no calibration batch"):
        calibrate(Add(), empty, (("input#0",),), 100, CPU)


def test_compiled_parts_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)))
    with pytest.raises(ModelError, match="'1' is compiled, so the calls inside can't be watched"):
        look(model, torch.zeros(1, 2))
