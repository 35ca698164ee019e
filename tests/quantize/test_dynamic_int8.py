# SPDX-License-Identifier: Apache-2.0
"""Dynamic int8: the arithmetic by hand, what ONNX Runtime makes of it, tied and recurrent layers, errors."""

import copy
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError, RecipeError
from rarefy.export.lint import lint
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.parity import check_parity
from rarefy.forms.affine import Quantised
from rarefy.forms.dynamic import DynamicLinear, dynamic_quantize
from rarefy.forms.recurrent import Recurrent
from rarefy.forms.shadow import find
from rarefy.forms.snapshot import restore, snapshot
from rarefy.quantize.dynamic_int8 import DynamicInt8
from rarefy.step import Context
from rarefy.task import Task


class Reader(nn.Module):
    """Looks tokens up, reads them one after the other and answers, (B, tokens) to (B, 5)."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **more: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 12)
        self.rnn = kind(12, 16, batch_first=True, **more)  # type: ignore[call-arg, misc]
        self.head = nn.Linear(16 * (1 + more.get("bidirectional", 0)), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(tokens))[0][:, -1])


class Tied(nn.Module):
    """A language model whose head is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(60, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 60, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.inner(self.table(tokens)).relu())


TOKENS = torch.randint(0, 60, (4, 7), generator=torch.Generator().manual_seed(1))


def quantised(model: nn.Module, x: Tensor, runtime: str = "onnxruntime", **how: Any) -> nn.Module:
    task = Task("toy", x, calibration=[x], labelled=False)
    context = Context(task, model, torch.device("cpu"), runtime=runtime)
    return DynamicInt8(**how).apply(copy.deepcopy(model).eval(), context)


@pytest.fixture(scope="module")
def onnx_quantizer() -> onnxruntime.InferenceSession:
    """DynamicQuantizeLinear as ONNX Runtime computes it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40))
def test_rounding_is_that_of_the_standard(onnx_quantizer, values: list[float]) -> None:
    x = torch.tensor(values)
    theirs = torch.from_numpy(onnx_quantizer.run(None, {"x": x.numpy()})[0])
    step = float((x.clamp(min=0).amax() - x.clamp(max=0).amin()) / 255)
    ours = dynamic_quantize(x)
    # a value half way between two codes may go to either
    assert float((ours - theirs).abs().max()) <= step * 1.001 + 1e-30
    assert float((ours - x).abs().max()) <= step * 1.001 + 1e-30


def test_the_gradient_goes_straight_through() -> None:
    x = torch.randn(5, requires_grad=True)
    (dynamic_quantize(x) * torch.arange(5.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(5.0))


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_a_layer_is_a_product_of_integers(granularity: str) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(48, 20)),
        torch.randn(6, 48) * torch.logspace(-2, 2, 6)[:, None],
    )
    found = quantised(model, x, granularity=granularity)
    layer: Any = found[0]
    assert isinstance(layer, DynamicLinear)
    form = find(layer, Quantised)
    W = layer.parametrizations["weight"].original.double()
    reach = x.abs().amax(1, keepdim=True) if granularity == "token" else torch.ones(6, 1)
    y = (x / reach).numpy()
    low, high = min(y.min(), 0), max(y.max(), 0)
    s = np.float32((high - low) / 255)
    z = np.rint(-low / s)
    codes = np.clip(np.rint(y / s) + z, 0, 255) - z
    total = torch.from_numpy(codes).double() @ W.T  # whole numbers
    by_hand = total * float(s) * form.scale.double() * reach + model[0].bias
    assert torch.allclose(found(x).double(), by_hand, rtol=1e-5, atol=1e-4 * float(by_hand.std()))
    assert check_parity(found, export_onnx(found, x), [x]).max_relative < 1e-5


def test_small_rows_beside_large_ones_keep_their_digits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16))
    x = torch.randn(8, 64)
    x[0] *= 1000
    errors = {
        g: float((quantised(model, x, granularity=g)(x) - model(x))[1:].abs().max())
        for g in ("token", "tensor")
    }
    assert errors["token"] < 0.05 < errors["tensor"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"bias": False}),
        (nn.GRU, {}),
    ],
)
def test_recurrent_networks_run_as_they_are_computed(kind: Any, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Reader(kind, **more).eval()
    found = quantised(model, TOKENS)
    program = export_onnx(found, TOKENS)
    runtime = OnnxRuntime(program, threads=1)
    # a state between two codes may be rounded to either
    parity = check_parity(found, runtime, [TOKENS, TOKENS[:2]], tolerance=1 / 255)
    assert parity.passed
    assert found(TOKENS).sub(model(TOKENS)).abs().max() < 0.05 * model(TOKENS).abs().max()
    weights = sum(p.nbytes for p in model.parameters() if p.dim() > 1)
    assert sum(len(t.raw_data) for t in program.graph.initializer) < 0.45 * weights
    kernels = runtime.node_counts()
    assert kernels.get("DynamicQuantizeLSTM", 0) == (
        0 if kind is nn.GRU else more.get("num_layers", 1)
    )
    assert kernels["DynamicQuantizeMatMul"] == 1
    if kind is nn.LSTM:
        assert all(product.integer for product in lint(program))


def test_an_lstm_of_floats_is_torchs_own() -> None:
    torch.manual_seed(0)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        layer = kind(6, 8, num_layers=2, bidirectional=True).eval()  # type: ignore[operator]
        copied = Recurrent(copy.deepcopy(layer)).eval()
        for x in (torch.randn(5, 3, 6), torch.randn(5, 6)):
            (y, last), (z, end) = layer(x), copied(x)
            assert torch.equal(y, z)
            assert all(torch.equal(a, b) for a, b in zip(last, end, strict=True))
    projected = nn.LSTM(6, 8, proj_size=3).eval()
    x = torch.randn(5, 2, 6)
    assert torch.equal(Recurrent(copy.deepcopy(projected)).eval()(x)[0], projected(x)[0])


def test_where_openvino_runs_an_lstm_computes_in_floats() -> None:
    torch.manual_seed(0)
    found = quantised(Reader().eval(), TOKENS, runtime="openvino")
    operators = {node.op_type for node in export_onnx(found, TOKENS).graph.node}
    assert "LSTM" in operators
    assert "DynamicQuantizeLSTM" not in operators


def test_a_table_is_looked_up_as_codes_and_tied_weights_stay_one() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    found = quantised(model, TOKENS)
    held = [
        found.table.parametrizations.weight.original,
        found.head.parametrizations.weight.original,
    ]
    assert held[0] is held[1]
    program = export_onnx(found, TOKENS)
    assert check_parity(found, program, [TOKENS]).max_relative < 1e-4
    tables = [t for t in program.graph.initializer if sorted(t.dims) == [32, 60]]
    assert len(tables) == 1
    assert tables[0].data_type == TensorProto.INT8
    assert not any(node.op_type == "DequantizeLinear" for node in program.graph.node)
    assert F.cosine_similarity(found(TOKENS), model(TOKENS), dim=-1).min() > 0.99


def test_torchs_transformer_layers_run_through_the_new_ones() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    task = Task("toy", x, calibration=[x], labelled=False)
    context = Context(task, model, torch.device("cpu"))
    found = DynamicInt8().apply(copy.deepcopy(model), context)
    with torch.no_grad():  # in which torch would take one fused kernel
        assert not torch.allclose(found(x), model(x), atol=1e-6)
        assert torch.allclose(found(x), model(x), atol=0.1)
        assert check_parity(found, export_onnx(found, x), [x]).max_relative < 1e-4
    assert "'self_attn.out_proj'" in context.record["notes"][0]


def test_a_stage_is_resumed() -> None:
    torch.manual_seed(0)
    model = Reader().eval()
    found = quantised(model, TOKENS)
    back = restore(copy.deepcopy(model), *snapshot(found))
    assert torch.equal(back(TOKENS), found(TOKENS))


def test_bad_input_ends_in_a_sentence() -> None:
    image = torch.randn(1, 3, 8, 8)
    with pytest.raises(RecipeError, match="use static-int8 for convolutions"):
        quantised(nn.Sequential(nn.Conv2d(3, 4, 3)), image)
    with pytest.raises(RecipeError, match="exclude: 'hed' matches no layer; did you mean 'head'"):
        quantised(Reader(), TOKENS, exclude="hed")
    with pytest.raises(RecipeError, match="leaves no layer"):
        quantised(Reader(), TOKENS, layers=("head",), exclude=("type:Linear",))
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 12), torch.randn(2, 12)])
    with pytest.raises(ModelError, match="takes tensors, not a PackedSequence"):
        quantised(Reader(), TOKENS).rnn(packed)
    broken = nn.Sequential(nn.Linear(4, 2))
    nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(ModelError, match="the weight of '0' holds NaN"):
        quantised(broken, torch.randn(2, 4))


def test_layers_are_chosen_by_pattern() -> None:
    found = quantised(Reader().eval(), TOKENS, layers=("rnn", "type:Embedding"))
    assert isinstance(found.rnn, Recurrent)
    assert find(found.table, Quantised) is not None
    assert type(found.head) is nn.Linear
    found = quantised(Reader().eval(), TOKENS, exclude=("last", "rn*"))
    assert isinstance(found.rnn, nn.LSTM) != isinstance(found.head, nn.Linear)
