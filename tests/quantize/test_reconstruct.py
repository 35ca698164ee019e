# SPDX-License-Identifier: Apache-2.0
"""Reconstruction without labels: never worse than nearest rounding, far better at 2 bits, same file."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.affine import Quantised
from rarefy.forms.shadow import find
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.quantize.layout import Widths, lay_out
from rarefy.quantize.reconstruct import Reconstruct, fold, settle, soften
from rarefy.quantize.reconstruction_loss import mixed, output_error
from rarefy.quantize.reconstruction_units import samples_of, units_of
from rarefy.quantize.training_network import dress_for_training
from rarefy.step import Context
from rarefy.task import Task


class Block(nn.Module):
    """A residual block with norms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(self.norm(self.a(x)).relu())).relu()


class Net(nn.Module):
    """A stem, two blocks, a head; for (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3), nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def context_of(model: nn.Module) -> Context:
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 8, 8, generator=draw) for _ in range(3)]
    task = Task("random", batches[0][:2], calibration=batches, labelled=False)
    return Context(task, copy.deepcopy(model), torch.device("cpu"))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


def test_blocks_are_units_and_other_layers_their_own(net: nn.Module) -> None:
    layout = lay_out(net, context_of(net), Widths(4))
    x = torch.randn(2, 3, 8, 8)
    by_block = units_of(net, x, layout.layers, by_block=True)
    assert [u.path for u in by_block] == ["stem", "blocks.0", "blocks.1", "head"]
    assert [shared[0].name for shared in by_block[1].layers] == ["blocks.0.a", "blocks.0.b"]
    by_layer = units_of(net, x, layout.layers, by_block=False)
    assert len(by_layer) == 6


def test_samples_hold_what_each_network_gives_the_unit(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.stem.weight.mul_(2)
    x = torch.randn(4, 3, 8, 8)
    (sample,) = samples_of("blocks.1", other, net, [x])
    assert torch.equal(sample.exact[0][0], net.blocks[0](net.stem(x).relu()))
    assert torch.equal(sample.rounded[0][0], other.blocks[0](other.stem(x).relu()))
    assert torch.equal(sample.target, net.blocks(net.stem(x).relu()))
    part = sample.take(torch.tensor([2, 0]))
    assert torch.equal(part.target, sample.target[[2, 0]])
    assert torch.equal(part.rounded[0][0], sample.rounded[0][0][[2, 0]])


def test_no_unit_is_worse_than_nearest_and_the_last_block_far_better(net: nn.Module) -> None:
    before, context = copy_state(net), context_of(net)
    Reconstruct(bits=3, iterations=80).apply(copy.deepcopy(net), context)
    errors = context.record["output_errors"]
    assert set(errors) == {"blocks.0", "blocks.1"}  # the ends have 8 bits
    assert all(kept <= nearest for nearest, _, kept in errors.values())
    nearest, learned, _ = errors["blocks.1"]
    assert learned < 0.75 * nearest
    assert all(torch.equal(t, before[n]) for n, t in copy_state(net).items())


def test_what_does_not_help_is_not_kept(net: nn.Module) -> None:
    context = context_of(net)
    bad = Reconstruct(bits=4, iterations=3, rate=50.0, decision=0.0)
    found = bad.apply(copy.deepcopy(net), context)
    plain = Reconstruct(bits=4, iterations=0).apply(copy.deepcopy(net), context_of(net))
    worse = [
        path
        for path, (near, learned, _) in context.record["output_errors"].items()
        if learned > near
    ]
    assert worse
    for path in worse:
        for name in ("a", "b"):
            one, other = (m.get_submodule(f"{path}.{name}") for m in (found, plain))
            assert torch.equal(one.weight, other.weight)


def test_few_bits_keep_the_accuracy_and_the_file_computes_the_same(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    blind = replace(task, calibration=[x for x, _ in task.calibration], labelled=False)  # type: ignore[union-attr]
    exact = evaluate(model, task).value
    x = next(iter(task.test))[0]  # type: ignore[arg-type]
    context = Context(blind, copy.deepcopy(model), torch.device("cpu"))
    found = Reconstruct(bits=2, iterations=60).apply(copy.deepcopy(model), context)
    for nearest, _, kept in context.record["output_errors"].values():
        assert kept < 0.5 * nearest
    assert evaluate(found, task).value >= exact - 0.02
    codes = found.fc1.parametrizations.weight.original
    assert find(found.fc1, Quantised).bits == 2
    assert set(codes.unique().tolist()) <= {-2, -1, 0, 1}
    runtime = OnnxRuntime(export_onnx(found, task.example))
    assert float((runtime(x) - found(x)).detach().abs().mean()) <= 0.01 * float(
        model(x).detach().abs().max()
    )


def test_roundings_take_the_place_of_grids_and_give_it_back(net: nn.Module) -> None:
    context = context_of(net)
    layout = fold(net, lay_out(net, context, Widths(4)))
    assert not layout.pairs
    assert type(net.blocks[0].norm) is nn.Identity
    dress_for_training(net, layout, "learned-step")
    inner = [shared for shared in layout.layers if shared[0].name == "blocks.0.a"]
    before = net.blocks[0].a.weight.detach().clone()
    soft = soften(inner)
    with torch.no_grad():
        soft[0][2].V.fill_(9.0)  # all up
    soft[0][2].hard = True
    up = net.blocks[0].a.weight.detach().clone()
    settle(soft, better=True)
    assert torch.allclose(net.blocks[0].a.weight, up, atol=1e-6)
    assert not torch.equal(up, before)


def test_mixing_and_error_in_numbers() -> None:
    torch.manual_seed(0)
    a, b = torch.zeros(10_000), torch.ones(10_000)
    assert float(mixed(a, b, 0.25).mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(mixed(a, b, 0.0), a)
    assert float(output_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4))) == 3.0
