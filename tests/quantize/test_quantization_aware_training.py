# SPDX-License-Identifier: Apache-2.0
"""Training through the rounding: what is exported is what was trained, and what the schedule promises."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.activations import quantizers_of
from rarefy.forms.affine import Quantised
from rarefy.forms.mask import set_mask
from rarefy.forms.shadow import find
from rarefy.forms.snapshot import restore, snapshot
from rarefy.loops.fit import fit
from rarefy.loops.modes import copy_state
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.quantize.folded_norm import norms_behind
from rarefy.quantize.layout import Widths, lay_out
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining, clip_cost
from rarefy.quantize.training_network import (
    dress_for_training,
    finish_training,
    grids_in_training,
    quantizers_in_training,
)
from rarefy.step import Context
from rarefy.task import Task

WAYS = ("learned-step", "straight-through", "pact", "learned-range")


class Net(nn.Module):
    """Convolutions with norms, one of them depthwise, a sum, two linear layers; for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(192, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.pool(x + self.norm2(self.conv2(x)).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture(scope="module")
def net(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(Net(), digits_task, Training(epochs=6, rate=0.05))


def context_of(task: Task, model: nn.Module) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))


def few(task: Task, number: int = 4) -> Task:
    torch.manual_seed(0)
    return replace(
        task, train=list(itertools.islice(task.batches("train"), number)), validation=None
    )


@pytest.mark.parametrize(("method", "bits"), [*((way, 4) for way in WAYS), ("learned-step", 8)])
def test_what_is_exported_is_what_was_trained(
    method: str, bits: int, net: nn.Module, digits_task: Task
) -> None:
    model, context = copy.deepcopy(net), context_of(digits_task, net)
    layout = lay_out(model, context, Widths(bits, bits))
    dress_for_training(model, layout, method, "mse")  # type: ignore[arg-type]
    step = QuantizationAwareTraining(method=method, bits=bits, activation_bits=bits, epochs=1)  # type: ignore[arg-type]
    step.fit(model, replace(context, task=few(digits_task)), layout)
    trained = copy.deepcopy(model).eval()
    finish_training(model, layout)
    runtime = OnnxRuntime(export_onnx(model, digits_task.example))
    x = torch.cat([inputs for inputs, _ in digits_task.batches("test")])
    with torch.no_grad():
        ours, theirs = trained(x), runtime(x)
    step_of_output = (ours.max() - ours.min()) / 255
    assert float((ours - theirs).abs().max()) <= float(step_of_output)
    assert float((ours.argmax(1) == theirs.argmax(1)).float().mean()) >= 0.999
    assert torch.allclose(model(x), trained(x), atol=float(step_of_output))


def test_fewer_bits_cost_little_when_they_are_trained(net: nn.Module, digits_task: Task) -> None:
    before = copy_state(net)
    exact = evaluate(net, digits_task).value
    found = {}
    for epochs in (0, 8):
        step = QuantizationAwareTraining(bits=2, activation_bits=2, epochs=epochs, rate=0.005)
        model = step.apply(copy.deepcopy(net), context_of(digits_task, net))
        found[epochs] = evaluate(model, digits_task).value
    assert found[8] > found[0] + 0.02
    assert found[8] >= exact - 0.05
    assert all(torch.equal(t, before[n]) for n, t in copy_state(net).items())


def test_codes_keep_to_their_bits_and_pruned_zeros(net: nn.Module, digits_task: Task) -> None:
    model = copy.deepcopy(net)
    set_mask(model.fc1, model.fc1.weight.abs() > 0.05)
    pruned = model.fc1.weight == 0
    step = QuantizationAwareTraining(bits=3, activation_bits=4, epochs=1, rate=0.02)
    found = step.apply(model, context_of(few(digits_task), net))
    codes = find(found.fc1, Quantised) and found.fc1.parametrizations.weight.original
    assert codes.dtype == torch.int8
    assert torch.all(codes % 16 == 0)  # shifted up by 4 bits, as activations have 4
    assert int(codes.min()) >= -4 * 16
    assert int(codes.max()) <= 3 * 16
    assert torch.all(codes[pruned] == 0)
    assert float(pruned.float().mean()) > 0.3
    at = quantizers_of(found).at_site()
    assert {site: q.bits for site, q in at.items() if ":relu" in site}[
        ":relu#2"
    ] == 8  # read by fc2
    assert int(find(found.fc1, Quantised).bits) == 3
    again = restore(copy.deepcopy(net), *snapshot(found))
    assert torch.equal(again(digits_task.example), found(digits_task.example))


def test_the_schedule_opens_and_freezes(net: nn.Module, digits_task: Task) -> None:
    model, context = copy.deepcopy(net), context_of(digits_task, net)
    dress_for_training(model, lay_out(model, context, Widths()), "pact", "mse")
    step = QuantizationAwareTraining(method="pact", delay=0.2, freeze_norms=0.5, freeze_ranges=0.8)
    seen = []
    for progress in (0.1, 0.3, 0.6, 0.9):
        model.train()
        step.set_stage(model, progress)
        quantizers = quantizers_in_training(model)
        seen.append(
            (
                all(q.waiting for q in quantizers),
                all(n.training for n in norms_behind(model)),
                all(g.frozen for g in (*grids_in_training(model), *quantizers)),
            )
        )
    assert seen == [
        (True, True, False), (False, True, False), (False, False, False), (False, False, True),
    ]  # fmt: skip
    assert len(norms_behind(model)) == 2
    assert float(clip_cost(model).detach()) > 0


def test_float_bits_are_plain_training_bit_for_bit(net: nn.Module, digits_task: Task) -> None:
    task = few(digits_task)
    step = QuantizationAwareTraining(
        bits=32, activation_bits=32, end_bits=32, epochs=2, rate=0.02, alpha=0.0
    )
    ours = step.apply(copy.deepcopy(net), context_of(task, net))
    from rarefy.loops.repair import repair

    theirs = repair(
        copy.deepcopy(net),
        context_of(task, net),
        step.training(),
        alpha=0.0,
        label="quantization-aware-training",
    )
    left, right = copy_state(ours), copy_state(theirs)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_labels_are_not_needed(net: nn.Module, digits_task: Task) -> None:
    x = [inputs for inputs, _ in few(digits_task, 20).train]  # type: ignore[union-attr]
    blind = replace(digits_task, train=x, calibration=x, validation=None, test=None, labelled=False)
    step = QuantizationAwareTraining(bits=3, activation_bits=3, epochs=6, rate=0.02)
    assert "labels" not in step.needs
    model = step.apply(copy.deepcopy(net), context_of(blind, net))
    assert evaluate(model, digits_task).value >= evaluate(net, digits_task).value - 0.05
    assert "labels" in QuantizationAwareTraining(alpha=0.5).needs


def test_widths_that_no_grid_has_are_refused() -> None:
    with pytest.raises(RecipeError, match="bits=12 is not allowed"):
        QuantizationAwareTraining(bits=12)
    with pytest.raises(RecipeError, match="activation_bits=1 is not allowed"):
        QuantizationAwareTraining(activation_bits=1)
