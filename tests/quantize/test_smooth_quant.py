# SPDX-License-Identifier: Apache-2.0
"""Smoothed networks compute the same; outlier channels of activations no longer ruin 8 bits."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rarefy.export.onnx import export_onnx
from rarefy.quantize.dynamic_int8 import DynamicInt8
from rarefy.quantize.smooth_quant import Reach, SmoothQuant, expected_error, smoothing_factors
from rarefy.quantize.smooth_sources import sources_of
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task
from rarefy.testing import check_step


class Layer(nn.Module):
    """A transformer layer with norms in front: one head, (B, tokens, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / 4
        x = x + self.out(scores.softmax(-1) @ self.v(y))
        return x + self.fc2(self.fc1(self.norm2(x)).relu())


class Post(nn.Module):
    """A norm behind the sum, which the next sum reads too."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x + self.a(x).sigmoid())
        return y + self.b(y)


@pytest.fixture
def outliers() -> nn.Module:
    """Two channels of the norms are a hundred times larger than the others."""
    torch.manual_seed(0)
    model = Layer().eval()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.weight[[3, 11]] *= 100
            norm.bias[[3, 11]] += 20
        for reader in (model.q, model.k, model.v, model.fc1):
            reader.weight[:, [3, 11]] /= 100
    return model


def context_of(model: nn.Module) -> Context:
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 6, 16, generator=draw) for _ in range(4)]
    task = Task("random", batches[0][:2], calibration=batches, labelled=False)
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


def error(model: nn.Module, exact: nn.Module) -> float:
    x = torch.randn(32, 6, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y, z = model(x), exact(x)
    return float((y - z).norm() / z.norm())


def test_sources_are_norms_read_by_linear_layers_alone(outliers: nn.Module) -> None:
    found = sources_of(outliers, torch.randn(2, 6, 16))
    assert [(s.maker, s.readers) for s in found] == [
        ("norm1", ("q", "k", "v")),
        ("norm2", ("fc1",)),
        ("fc1", ("fc2",)),
        (None, ("out",)),
    ]
    found = sources_of(Post().eval(), torch.randn(2, 6, 16))
    assert [(s.maker, s.readers) for s in found] == [(None, ("a",)), (None, ("b",))]


def test_what_reads_the_same_is_multiplied_alike(outliers: nn.Module) -> None:
    outliers.add_module("norm1", nn.Sequential(outliers.norm1, nn.Tanh()))
    found = sources_of(outliers, torch.randn(2, 6, 16))
    assert (None, ("q", "k", "v")) in [(s.maker, s.readers) for s in found]


def test_nothing_changes_before_rounding_and_much_less_afterwards(outliers: nn.Module) -> None:
    context = context_of(outliers)
    smoothed = SmoothQuant(multiply=False).apply(copy.deepcopy(outliers), context)
    assert error(smoothed, outliers) <= 1e-5
    assert set(context.record["smoothed"]) == {"norm1", "norm2"}  # fc1 would gain too little
    off = [
        error(StaticInt8(range="minmax").apply(copy.deepcopy(m), context_of(m)), outliers)
        for m in (outliers, smoothed)
    ]
    assert off[1] < 0.5 * off[0]


def test_both_sides_are_equally_hard_at_one_half(outliers: nn.Module) -> None:
    context = context_of(outliers)
    found = SmoothQuant(alpha=0.5, layers=("fc1", "fc2")).apply(outliers, context)
    x = torch.cat(list(context.task.calibration))  # type: ignore[arg-type]
    seen: list[Tensor] = []
    found.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        found(x)
    activations = seen[0].abs().flatten(0, 1).amax(0)
    # dividing fc1's outputs for fc2 changed its rows, not what its columns were when norm2 was served
    weights = found.fc1.weight.detach().abs().amax(0)
    assert "norm1" not in context.record["smoothed"]
    ratio = activations / weights
    assert float(ratio.max() / ratio.min()) < 100  # was 10,000


def test_factors_in_numbers() -> None:
    x, w = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])
    assert smoothing_factors(x, w, 0.5).tolist() == [2.0, 1.5, 1.0]
    assert smoothing_factors(x, w, 1.0).tolist() == [4.0, 9.0, 1.0]


@pytest.fixture
def post() -> nn.Module:
    """A norm that the residual stream reads too, with two channels a hundred times larger than the others."""
    torch.manual_seed(0)
    model = Post().eval()
    with torch.no_grad():
        model.norm.weight[[3, 11]] *= 100
        model.b.weight[:, [3, 11]] /= 100
    return model


@pytest.mark.parametrize("step", [StaticInt8(range="minmax"), DynamicInt8("tensor")])
def test_multiplications_stand_in_for_norms(post: nn.Module, step: StaticInt8) -> None:
    context = context_of(post)
    smoothed = SmoothQuant().apply(copy.deepcopy(post), context)
    assert error(smoothed, post) <= 1e-5
    assert set(context.record["smoothed"]) == {"b"}
    assert isinstance(smoothed.b.layer, nn.Linear)
    off = [
        error_of_sum(step.apply(copy.deepcopy(m), context_of(m)), post) for m in (post, smoothed)
    ]
    assert off[1] < 0.5 * off[0]


def test_the_multiplying_step_keeps_every_promise() -> None:
    torch.manual_seed(0)
    model = Post(width=96).eval()
    with torch.no_grad():
        model.norm.weight[::7] *= 100
        model.b.weight[:, ::7] /= 100
    batches = [torch.randn(8, 6, 96) for _ in range(4)]
    task = Task("random", batches[0][:2], train=batches, calibration=batches, labelled=False)
    check_step(SmoothQuant(layers="b"), model, task)
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    SmoothQuant(layers="b").apply(model, context)
    assert set(context.record["smoothed"]) == {"b"}  # else no promise was tried


def error_of_sum(model: nn.Module, exact: nn.Module) -> float:
    """Of what is added to the stream, which is itself a hundred times larger."""
    x = torch.randn(32, 6, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        stream = exact.norm(x + exact.a(x).sigmoid())  # type: ignore[operator]
        y, z = model(x) - stream, exact(x) - stream
    return float((y - z)[..., :3].norm() / z[..., :3].norm())


def test_readers_of_one_value_share_one_product_in_the_file() -> None:
    class Three(Post):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y + self.a(y).sigmoid() * self.b(y) + self.c(y)

    torch.manual_seed(0)
    model = Three().eval()
    with torch.no_grad():
        model.norm.weight[[3, 11]] *= 100
        for layer in (model.a, model.b, model.c):
            layer.weight[:, [3, 11]] /= 100
    context = context_of(model)
    smoothed = SmoothQuant().apply(model, context)
    assert set(context.record["smoothed"]) == {"a"}
    assert all(isinstance(m, nn.Sequential) for m in (smoothed.a, smoothed.b, smoothed.c))
    graph = export_onnx(smoothed, context.task.example).graph
    assert sum(node.op_type == "Mul" for node in graph.node) == 2  # one of them the gate's


def test_nothing_is_multiplied_if_that_is_not_wanted(post: nn.Module) -> None:
    context = context_of(post)
    before = {name: t.clone() for name, t in post.state_dict().items()}
    SmoothQuant(multiply=False).apply(post, context)
    assert "nothing" in context.record["notes"][0]
    assert all(torch.equal(t, before[n]) for n, t in post.state_dict().items())


def test_a_layer_whose_errors_would_grow_stays() -> None:
    torch.manual_seed(0)
    post = Post().eval()
    with torch.no_grad():
        post.b.weight[:, 3] *= 100
    context = context_of(post)
    # with alpha 0 the weights become even, and all that they differed in goes into the activations
    SmoothQuant(alpha=0.0).apply(post, context)
    assert "b" not in context.record["smoothed"]
    assert isinstance(post.b, nn.Linear)


def test_the_expected_error_is_the_measured_one() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 12, generator=draw) * torch.linspace(0.1, 3, 12)
    w = torch.randn(9, 12, generator=draw)
    s = torch.rand(12, generator=draw) + 0.5
    reach = Reach()
    reach.update(x)
    y, v = x / s, w * s
    low, high = y.min(), y.max()
    step, rows = (high - low) / 255, v.abs().amax(1, keepdim=True) / 127
    rounded = ((y - low) / step).round() * step + low
    found = (rounded @ ((v / rows).round() * rows).T - x @ w.T).square().sum(1).mean()
    assert float(found) == pytest.approx(expected_error(reach, w, s), rel=0.35)
