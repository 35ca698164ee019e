# SPDX-License-Identifier: Apache-2.0
"""Half precision: what is stored, what it computes, and what would overflow."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.forms.snapshot import restore, snapshot
from rarefy.quantize.half_precision import HalfPrecision, float_tensors, halve, reach_of
from rarefy.step import Context
from rarefy.task import Task


class Tied(nn.Module):
    """A normalised network whose last weight is its first, with a table of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.shift = nn.Parameter(torch.randn(6))
        self.register_buffer("table", torch.arange(6))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x[:, self.table])).relu() + self.shift)


def context_of(task: Task, model: nn.Module) -> Context:
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


def bytes_of(model: nn.Module, floating: bool) -> int:
    seen = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return sum(t.nbytes for t in seen.values() if t.is_floating_point() == floating)


@pytest.fixture
def task() -> Task:
    batches = [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return Task("rows", batches[0], calibration=batches, validation=batches, labelled=False)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_exactly_half_of_the_float_bytes_remain_and_ties_hold(precision, task) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    floats, others = bytes_of(model, True), bytes_of(model, False)
    rounded = copy.deepcopy(model)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    for tensor in (*rounded.parameters(), rounded.norm.running_mean, rounded.norm.running_var):
        tensor.data = tensor.data.to(dtype).float()
    found = HalfPrecision(precision=precision).apply(model, context_of(task, model))
    assert 2 * bytes_of(found, True) == floats
    assert bytes_of(found, False) == others
    assert torch.equal(found(task.example), rounded(task.example))
    held = [m.parametrizations.weight.original for m in (found.first, found.last)]
    assert held[0] is held[1]
    again = restore(Tied(), *snapshot(found))
    assert torch.equal(again.eval()(task.example), found(task.example))


def test_the_record_names_the_largest_activation(task) -> None:
    model = Tied().eval()
    with torch.no_grad():
        model.norm.running_var.fill_(1e-4)
    context = context_of(task, model)
    HalfPrecision().apply(model, context)
    norm = context.teacher.norm(context.teacher.first(task.example))
    assert context.record["largest_activation"]["value"] >= float(norm.abs().max())
    assert context.record["tensors"] == len(list(float_tensors(Tied()))) - 1  # one weight is shared


def test_an_activation_beyond_the_range_is_named_unless_bf16_holds_it(task) -> None:
    model = Tied().eval()
    with torch.no_grad():
        model.norm.running_var.zero_()
        model.norm.eps, model.norm.weight[:] = 1e-8, 100.0
    with pytest.raises(ModelError, match=r"batch_norm in layer 'norm'|linear in layer 'last'"):
        HalfPrecision().apply(copy.deepcopy(model), context_of(task, model))
    HalfPrecision(precision="bf16").apply(model, context_of(task, model))


def test_a_weight_beyond_the_range_is_named() -> None:
    model = Tied()
    with torch.no_grad():
        model.shift[2] = 7e4
    with pytest.raises(
        ModelError, match=r"'shift' holds 7e\+04, beyond 65504, .*use precision='bf16'"
    ):
        halve(model, "fp16")
    assert halve(model, "bf16") == 8


def test_masks_are_no_overflow_but_infinity_is() -> None:
    x = torch.tensor([1.0, -3.0, -torch.inf, torch.finfo(torch.float32).min])
    assert float(reach_of(x)) == 3
    assert float(reach_of(torch.tensor([1.0, torch.inf]))) > 65504
    assert float(reach_of(torch.tensor([1.0, torch.nan]))) > 65504
    assert float(reach_of(torch.tensor([-1e5]))) == 1e5


def test_recurrent_layers_stay_as_they_are_and_still_compute() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 3)
    expected = model(torch.ones(2, 1, 4))[0]
    assert halve(model, "fp16") == 0
    assert torch.equal(model(torch.ones(2, 1, 4))[0], expected)


def test_no_calibration_data_is_told(task) -> None:
    model = Tied().eval()
    empty = dataclasses.replace(task, calibration=iter(()))
    with pytest.raises(TaskError, match="task 'rows' yields no calibration batch"):
        HalfPrecision().apply(model, context_of(empty, model))
