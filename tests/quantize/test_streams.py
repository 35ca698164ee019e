# SPDX-License-Identifier: Apache-2.0
"""Residual streams of transformers stay float; in integers run the layers beside them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.quantize.calibration import look
from rarefy.quantize.kernels import LITERT, ONNXRUNTIME_CPU, Runtime
from rarefy.quantize.placement import Placement, place
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task


class Block(nn.Module):
    """Two sums, with norms behind them as in BERT or in front of the layers as in GPT; (B, 16)."""

    def __init__(self, behind: bool, in_place: bool = False) -> None:
        super().__init__()
        self.behind, self.in_place = behind, in_place
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        if self.behind:
            y = self.first(x + self.a(x))
            z = self.b(y).tanh()
            if self.in_place:
                y += z
                return self.c(self.second(y))
            return self.c(self.second(y + z))
        x = x + self.a(self.first(x)).tanh()
        x = x + self.b(self.second(x)).tanh()
        return self.c(x.tanh())


def placed(model: nn.Module, runtime: Runtime = ONNXRUNTIME_CPU) -> Placement:
    return place(*look(model.eval(), torch.randn(2, 16)), ("a", "b", "c"), (), runtime)


def test_sums_that_norms_read_are_no_integer_kernels() -> None:
    for behind in (True, False):
        found = placed(Block(behind))
        assert found.integer == ("a:linear#0", "b:linear#0", "c:linear#0")
        assert not any("add" in site for group in found.groups for site in group)


def test_a_sum_reads_a_norm_before_it_is_rounded() -> None:
    assert placed(Block(behind=True)).unrounded == ((":add#1", "first:layer_norm#0"),)
    assert placed(Block(behind=False)).unrounded == ()
    # the caller's tensor would stay as it is if another one were changed in its place
    assert placed(Block(behind=True, in_place=True)).unrounded == ()


def test_where_all_kernels_are_integer_kernels_sums_are_too() -> None:
    found = placed(Block(behind=True), LITERT)
    assert {":add#0", ":add#1"} <= set(found.integer)
    assert found.unrounded == ()


@pytest.mark.parametrize("behind", [True, False])
def test_outliers_of_the_stream_pass_by_the_rounding(behind: bool) -> None:
    torch.manual_seed(0)
    model = Block(behind).eval()
    with torch.no_grad():
        model.first.weight[3] = 100.0
        model.b.weight[:, 3] = model.a.weight[:, 3] = 0.0
    batches = [torch.randn(64, 16) for _ in range(4)]
    context = Context(
        Task("random", batches[0][:2], calibration=batches, labelled=False),
        copy.deepcopy(model), torch.device("cpu"),
    )  # fmt: skip
    found = StaticInt8(range="minmax", correct=False).apply(copy.deepcopy(model), context)
    x = torch.randn(200, 16)
    seen: dict[str, Tensor] = {}
    for name in ("first", "second"):
        found.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach()})
        )
    with torch.no_grad():
        rounded = found(x)
        added = seen["second"] - (model.first(seen["first"]) if behind else x)
    # in channel 3 a step of the rounded norm is about 700 / 255, and the tanh that is added is at most 1
    assert float(added[:, 3].abs().max()) <= 1.1
    program = OnnxRuntime(export_onnx(found, x[:2]))
    off = (program(x) - rounded).abs().max() / rounded.abs().max()
    assert float(off) <= 0.02
