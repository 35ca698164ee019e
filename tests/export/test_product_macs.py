# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates told from a file are those counted in the network."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rarefy.export.lint import MULTIPLYING
from rarefy.export.onnx import export_onnx
from rarefy.export.product_macs import macs_of
from rarefy.measure.counts import macs
from rarefy.quantize.dynamic_int8 import DynamicInt8
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task


class Several(nn.Module):
    """Plain, grouped and depthwise convolutions, one that widens, a linear layer, a product of results."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, (1, 3), groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, padding=1)
        self.wider = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wider(self.depthwise(self.grouped(self.plain(x).relu()).relu()).relu())
        y = self.head(x.flatten(2).transpose(1, 2))  # (B, pixels, 5)
        return y.transpose(1, 2) @ y


def counted(model: nn.Module, x: Tensor) -> int:
    proto = export_onnx(model, x)
    nodes = {str(i): n for i, n in enumerate(proto.graph.node) if n.op_type in MULTIPLYING}
    return sum(macs_of(proto, nodes, x).values())


@pytest.mark.parametrize("batch", [1, 3])
def test_every_kind_counts_as_in_the_network(batch: int) -> None:
    torch.manual_seed(0)
    model, x = Several().eval(), torch.randn(batch, 3, 12, 14)
    pixels = 12 * 12
    assert counted(model, x) == batch * (macs(model, x[:1]))
    assert macs(nn.Linear(6, 5), torch.zeros(1, pixels, 6)) == pixels * 30


def test_quantised_weights_count_all_the_same() -> None:
    torch.manual_seed(0)
    model, x = Several().eval(), torch.randn(2, 3, 12, 14)
    expected = macs(model, x[:1])
    task = Task("noise", x, calibration=[x], labelled=False)
    context = Context(task, model, torch.device("cpu"))
    found = StaticInt8(compensate=False, range="minmax").apply(model, context)
    assert counted(found, x[:1]) == expected


def test_dynamic_products_count_too() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval(),
        torch.ones(2, 7, 16),
    )
    task = Task("noise", x, labelled=False)
    found = DynamicInt8().apply(model, Context(task, model, torch.device("cpu")))
    assert counted(found, x) == 2 * 7 * (16 * 32 + 32 * 4)


def test_an_lstm_reads_both_matrices_in_every_step() -> None:
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[1][0][-1])  # the whole sequence of states is not read

    model, x = Recurrent().eval(), torch.randn(2, 7, 16)
    task = Task("noise", x, labelled=False)
    found = DynamicInt8().apply(model, Context(task, model, torch.device("cpu")))
    assert counted(found, x) == 2 * 7 * 4 * 24 * (16 + 24) + 2 * 24 * 4


def test_a_file_of_a_fixed_batch_counts_the_whole_of_it() -> None:
    weight = numpy_helper.from_array(np.ones((6, 3), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, size])
        for name, size in (("x", 6), ("y", 3))
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "fixed", [x], [y], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert macs_of(proto, {"only": node}, torch.ones(1, 6)) == {"only": 4 * 6 * 3}
