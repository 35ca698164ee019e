# SPDX-License-Identifier: Apache-2.0
"""Static int8 end to end: integer kernels in the runtime, the same answers, and what stays float."""

import copy
import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, RecipeError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.activations import quantizers_of
from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid, along, to_codes
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import find
from rarefy.forms.snapshot import restore, snapshot
from rarefy.measure.quality import evaluate
from rarefy.quantize.int8_weights import weight_scale
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task


def context_of(task: Task, model: nn.Module) -> Context:
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


def random_task(*shape: int, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(8, *shape, generator=generator) for _ in range(2)]
    return Task("random", batches[0][:2], calibration=batches, validation=batches, labelled=False)


class Mixer(nn.Module):
    """Normalised convolutions, a sum, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((self.left(x) + self.right(x)).relu().mean((2, 3)))


@pytest.fixture
def mixer() -> nn.Module:
    torch.manual_seed(0)
    model = Mixer()
    for _ in range(5):
        model(torch.randn(16, 3, 8, 8))
    return model.eval()


def test_trained_digits_keep_their_accuracy_and_run_on_integer_kernels(digits) -> None:
    model, task = digits
    before = evaluate(model, task).value
    found = StaticInt8().apply(copy.deepcopy(model), context_of(task, model))
    runtime = OnnxRuntime(export_onnx(found, task.example))
    counts = runtime.node_counts()
    assert counts["QLinearConv"] == 2
    assert counts["QGemm"] == 2
    assert counts["QuantizeLinear"] == 1
    assert "DequantizeLinear" not in counts
    assert abs(evaluate(found, task).value - before) <= 0.01
    assert abs(evaluate(runtime, task).value - before) <= 0.01


def test_sums_and_folded_norms_run_on_integer_kernels(mixer) -> None:
    task = random_task(3, 8, 8)
    context = context_of(task, mixer)
    found = StaticInt8().apply(mixer, context)
    assert context.record["folded_norms"] == 1
    assert isinstance(found.norm, nn.Identity)
    runtime = OnnxRuntime(export_onnx(found, task.example))
    counts = runtime.node_counts()
    assert (counts["QLinearConv"], counts["QLinearAdd"], counts["QGemm"]) == (3, 1, 1)
    assert "Relu" not in counts
    x = task.example
    exact, ours = context.teacher(x), found(x)
    assert torch.allclose(runtime(x), ours, atol=0.02 * float(exact.abs().max()))
    assert float((ours - exact).norm() / exact.norm()) < 0.05


def test_a_snapshot_gives_the_quantised_network_back(mixer) -> None:
    task = random_task(3, 8, 8)
    original = copy.deepcopy(mixer)
    found = StaticInt8().apply(mixer, context_of(task, mixer))
    again = restore(original, *snapshot(found))
    assert torch.equal(again(task.example), found(task.example))


@pytest.mark.parametrize("bits", [2, 3, 7, 8])
def test_codes_use_the_narrow_range_and_keep_pruned_zeros(bits, digits) -> None:
    model, task = digits
    set_mask(model.fc1, model.fc1.weight.abs() > 0.05)
    pruned = model.fc1.weight == 0
    found = StaticInt8(bits=bits, overflow="allow", examples=64).apply(
        model, context_of(task, model)
    )
    codes = found.fc1.parametrizations.weight.original
    reach = 2 ** (bits - 1) - 1
    assert codes.dtype == torch.int8
    expected = torch.where(pruned.all(1), 0, reach)  # a unit without weights has nothing to code
    assert torch.equal(codes.abs().amax(1).int(), expected.int())
    assert torch.all(codes[pruned] == 0)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_least_squares_scales_are_no_worse_in_any_channel(bits) -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) ** 3
    w[4] = 0
    grid = Grid(bits, narrow=True)
    zero = torch.zeros(6, dtype=torch.int8)

    def errors(choice: str) -> Tensor:
        scale = weight_scale(w, grid, 0, choice)
        return (to_codes(w, scale, zero, grid, 0) * along(scale, 0, 2) - w).square().sum(1)

    assert torch.all(errors("mse") <= errors("minmax"))
    assert bits == 8 or errors("mse").sum() < errors("minmax").sum()
    expected = w.abs().amax(1) / grid.high
    expected[4] = 1
    assert torch.allclose(weight_scale(w, grid, 0, "minmax"), expected)


def test_a_bias_fits_into_32_bits_beside_tiny_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight[1] *= 1e-12
        model[0].bias[1] = 0.7
    task = random_task(3, 8, 8)
    context = context_of(task, model)
    found = StaticInt8().apply(model, context)
    form, quantizers = find(found[0], Quantised), quantizers_of(found)
    steps = found[0].bias.abs() / (form.scale * quantizers.at_site()["input#0"].scale)
    assert float(steps.max()) <= 2**30 * 1.001
    x = task.example
    assert torch.allclose(OnnxRuntime(export_onnx(found, x))(x), found(x), atol=0.02)


def test_excluded_layers_and_modules_stay_float(digits) -> None:
    model, task = digits
    weights = {n: model.get_submodule(n).weight.detach().clone() for n in ("conv1", "fc2")}
    context = context_of(task, model)
    found = StaticInt8(exclude=("first", "last"), examples=64).apply(model, context)
    for name, weight in weights.items():
        assert torch.equal(found.get_submodule(name).weight, weight)
    assert context.record["integer_calls"] == ["conv2:conv2d#0", "fc1:linear#0"]
    assert "input#0" not in context.record["ranges"]


@pytest.mark.parametrize("exclude", ["pool", ("po?l", "b"), "re:poo."])
def test_a_module_without_weights_can_stay_float(exclude: str | tuple[str, ...]) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        parts = (nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
        return nn.Sequential(OrderedDict(zip(("a", "pool", "b", "end"), parts, strict=True)))

    task = random_task(3, 12, 12)
    found = {}
    for what in ((), exclude):
        model = network()
        context = context_of(task, model)
        StaticInt8(exclude=what, examples=16).apply(model, context)
        found[what] = {call.split(":")[0] for call in context.record["integer_calls"]}
    assert found[()] == {"a", "pool", "b"}
    assert found[exclude] == {"a"} if "b" in exclude else {"a", "b"}
    with pytest.raises(RecipeError, match="exclude: 'pole' matches no layer"):
        StaticInt8(exclude="pole").apply(network(), context_of(task, network()))


def test_a_second_time_replaces_the_first(digits) -> None:
    model, task = digits
    once = StaticInt8(examples=64).apply(model, context_of(task, model))
    sites = quantizers_of(once).sites
    twice = StaticInt8(examples=64).apply(once, context_of(task, once))
    assert quantizers_of(twice).sites == sites
    assert torch.isfinite(twice(task.example)).all()


def test_constant_activations_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    task = random_task(1, 8, 8)
    expected = model(task.example)
    found = StaticInt8().apply(model, context_of(task, model))
    assert torch.allclose(found(task.example), expected, atol=1e-5)


def test_what_cannot_be_done_is_told(digits_task) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).flatten(1)

    model = Gate()
    with pytest.raises(ModelError, match=r"no call of the Gate can be computed in integers"):
        StaticInt8().apply(model, context_of(digits_task, model))
    broken = dataclasses.replace(
        digits_task, calibration=[torch.full((2, 1, 8, 8), torch.nan)], labelled=False
    )
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(ModelError, match="'input#0' gives NaN or infinity on calibration batch 1"):
        StaticInt8().apply(layer, context_of(broken, layer))
    with pytest.raises(RecipeError, match="bits=9 is not allowed"):
        StaticInt8(bits=9)
    assert StaticInt8().needs == {"calibration"}


def test_inverted_residuals_quantise_around_their_clips() -> None:
    torch.manual_seed(0)
    model = load_model("torchvision:mobilenet_v2")
    task = random_task(3, 32, 32)
    context = context_of(task, model)
    StaticInt8(examples=8).apply(model, context)
    assert context.record["folded_norms"] == 52
    calls = context.record["integer_calls"]
    assert sum("conv2d" in c for c in calls) == 52
    assert sum(":add" in c for c in calls) == 10
    sites = context.record["ranges"]
    assert sum("hardtanh" in s for s in sites) == 35
    assert all(0 <= low < high <= 6 for s, (low, high) in sites.items() if "hardtanh" in s)


def test_resnet20_quantises_in_the_right_places() -> None:
    model = load_model("zoo:resnet20")
    task = load_task("random-images:3x32x32")
    context = context_of(task, model)
    found = StaticInt8(examples=8).apply(model, context)
    assert context.record["folded_norms"] == 19
    calls = context.record["integer_calls"]
    assert sum("conv2d" in c for c in calls) == 19
    assert sum(":add" in c for c in calls) == 9
    # one for the input and the stem, three for each block, one for each padded shortcut, one for the mean
    assert len(context.record["ranges"]) == 2 + 3 * 9 + 2 + 1
    exact, ours = context.teacher(task.example), found(task.example)
    assert float((ours - exact).norm() / exact.norm()) < 0.1


class Words(nn.Module):
    """Rows of a table and what a linear layer makes of their mean; the table may be the last layer's too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 40, bias=False)
        if tied:
            self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.table(x).mean(1)).relu())


@pytest.mark.parametrize("tied", [False, True])
def test_tables_are_stored_as_codes(tied: bool) -> None:
    torch.manual_seed(0)
    model, draw = Words(tied).eval(), torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 40, (32, 6), generator=draw) for _ in range(3)]
    task = Task("words", batches[0][:2], calibration=batches, labelled=False)
    found = StaticInt8(correct=False).apply(copy.deepcopy(model), context_of(task, model))
    form = find(found.table, Quantised, "weight")
    assert form is not None
    largest = model.table.weight.detach().abs().amax(1)
    assert torch.all(
        (found.table.weight - model.table.weight).abs().amax(1) <= 0.51 / 127 * largest * 1.3
    )
    proto = export_onnx(found, batches[0][:2])
    held = {tuple(t.dims): t.data_type for t in proto.graph.initializer}
    assert held[40, 16] == 3  # int8
    x = torch.randint(0, 40, (50, 6), generator=draw)
    with torch.no_grad():
        expected, exact = found(x), model(x)
    assert float((OnnxRuntime(proto)(x) - expected).abs().max() / exact.abs().max()) <= 0.02
    assert float((expected - exact).norm() / exact.norm()) <= 0.03
    if not tied:
        left = StaticInt8(exclude="table").apply(model, context_of(task, model)).table
        assert find(left, Quantised, "weight") is None


@pytest.mark.parametrize(("inputs", "asked"), [(16, 80), (512, 80 + 320)])
def test_layers_of_few_tokens_are_compensated_with_more_examples(
    inputs: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rarefy.quantize import static_int8

    torch.manual_seed(0)
    tokens = [torch.randn(8, 10, inputs) for _ in range(8)]
    task = Task("tokens", tokens[0], calibration=tokens, validation=tokens, labelled=False)
    model = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 2))
    rows: list[int] = []
    usual = static_int8.moments_of_layers

    def counted(model, layers, batches):
        for layer, moment in usual(model, layers, batches):
            if layer.weight.shape[1] == inputs:
                rows.append(moment.count)
            yield layer, moment

    monkeypatch.setattr(static_int8, "moments_of_layers", counted)
    StaticInt8().apply(model, context_of(task, model))
    assert sum(rows) == asked
