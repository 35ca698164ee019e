# SPDX-License-Identifier: Apache-2.0
"""Int8 without data: loaders stay untouched, mean outputs are right, one scale for all channels works."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.quantize.bias_correction import RowMean, absorb, absorbed, mean_row, output_shift
from rarefy.quantize.data_free_int8 import DataFreeInt8
from rarefy.step import Context
from rarefy.task import Task


class Guarded:
    """Batches that nobody may ask for."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("a data-free method looked at data")


class Net(nn.Module):
    """Convolutions with norms, one of them depthwise, a sum, a mean, a linear layer; (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.wide, self.norm2 = nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12)
        self.point, self.norm3 = nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm2(self.wide(x)).relu()
        return self.head((x + self.norm3(self.point(x))).mean((2, 3)))


@pytest.fixture
def uneven() -> nn.Module:
    """Trained statistics, and channels that differ by two orders of magnitude within a weight."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2, model.norm3):
            norm.bias.uniform_(-0.5, 1.5)
            norm.weight.copy_(torch.exp(1.5 * torch.randn(12)))
    for _ in range(80):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


def context_of(model: nn.Module, batches: Any = None) -> Context:
    guarded = Guarded() if batches is None else batches
    torch.manual_seed(1)
    task = Task("random", torch.randn(8, 3, 8, 8), calibration=guarded, labelled=False)
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


def error_of(step: DataFreeInt8, model: nn.Module, batches: Any = None) -> float:
    found = step.apply(copy.deepcopy(model), context_of(model, batches))
    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        y, z = found(x), model(x)
    return float((y - z).norm() / z.norm())


def test_no_data_is_touched_and_the_runtime_agrees(uneven: nn.Module) -> None:
    context = context_of(uneven)
    found = DataFreeInt8().apply(copy.deepcopy(uneven), context)
    assert "calibration" not in DataFreeInt8().needs
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        y, z = found(x), uneven(x)
    assert float((y - z).norm() / z.norm()) <= 0.1
    runtime = OnnxRuntime(export_onnx(found, context.task.example))
    assert runtime.node_counts()["QLinearConv"] == 3
    assert float((runtime(x) - y).abs().mean()) <= 0.005 * float(z.abs().max())


def test_with_one_scale_for_a_weight_equalisation_helps(uneven: nn.Module) -> None:
    plain = error_of(DataFreeInt8(granularity="tensor", equalise=False, bits=6), uneven)
    helped = error_of(DataFreeInt8(granularity="tensor", bits=6), uneven)
    assert helped < 0.7 * plain


def test_corrected_outputs_have_the_right_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)
    ).eval()
    batches = [torch.randn(16, 3, 8, 8) + 0.7 for _ in range(4)]
    off = {}
    for how in ("none", "empirical"):
        step = DataFreeInt8(bits=3, correction=how, equalise=False, layers="0")  # type: ignore[arg-type]
        found = step.apply(copy.deepcopy(model), context_of(model, batches))
        x = torch.cat(batches)
        with torch.no_grad():
            ours, exact = found[0](x), model[1](model[0](x))
        off[how] = (ours - exact).mean((0, 2, 3)).abs().max()
    assert float(off["empirical"]) <= 1e-3
    assert float(off["none"]) >= 10 * float(off["empirical"])


def test_the_analytic_shift_is_that_of_normal_inputs(uneven: nn.Module) -> None:
    plain = error_of(DataFreeInt8(bits=3, correction="none"), uneven)
    analytic = error_of(DataFreeInt8(bits=3, correction="analytic"), uneven)
    assert analytic < plain


@pytest.mark.parametrize("groups", [1, 2])
def test_absorbing_changes_nothing_for_values_above(groups: int) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=groups)
    with torch.no_grad():
        first.bias.fill_(20.0)
    x = torch.rand(4, 3, 6, 6)
    before = second(first(x).relu())
    c = absorbed(torch.tensor([5.0, 9.0, 1.0, -2.0]), torch.tensor([1.0, 4.0, 1.0, 1.0]))
    assert c.tolist() == [2.0, 3.0, 0.0, 0.0]
    absorb(first, second, c)
    assert torch.allclose(second(first(x).relu()), before, atol=1e-4)
    assert float(first.bias.detach().min()) == 17.0


def test_shifts_and_rows_in_numbers() -> None:
    error = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    assert output_shift(error, torch.tensor([3.0, 1.0])).tolist() == [1.0, 1.5]
    row = mean_row(nn.Conv2d(2, 3, 2), torch.tensor([1.0, 5.0]))
    assert row.tolist() == [1.0] * 4 + [5.0] * 4
    mean = RowMean()
    mean.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    mean.update(torch.tensor([[5.0, 0.0]]))
    assert mean.mean().tolist() == [3.0, 2.0]


def test_what_cannot_be_told_without_data_is_said() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).sigmoid()).mean((2, 3))

    model = Gated().eval()
    with pytest.raises(ModelError, match="the range of what leaves ':sigmoid#0' can't be told"):
        DataFreeInt8().apply(model, context_of(model))
