# SPDX-License-Identifier: Apache-2.0
"""Network slimming: scales part, the threshold is global, and what a scale of zero leaves behind is exact."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_channels import PruneChannels
from rarefy.prune.silent_units import cut_silent_units
from rarefy.prune.sparsify import Sparsify
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.vgg import SmallVGG


@pytest.fixture(scope="module")
def vgg(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(SmallVGG(1, 10, 8), digits_task, Training(epochs=5, rate=0.1))


def context(model: nn.Module, task: Task) -> Context:
    return Context(task, copy.deepcopy(model).eval(), torch.device("cpu"))


def scales(model: nn.Module) -> Tensor:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.cat([m.weight.detach().abs() for m in norms])


SLIM = PruneChannels(sparsity=0.5, criterion="norm-scale", normalise="none")


def test_the_penalty_parts_the_scales_and_its_absence_does_not(
    vgg: nn.Module, digits_task: Task
) -> None:
    def trained(strength: float) -> nn.Module:
        step = Sparsify(strength=strength, epochs=3, rate=0.05, cut=False)
        return step.apply(copy.deepcopy(vgg), context(vgg, digits_task))

    slim, plain = scales(trained(0.1)), scales(trained(1e-9))
    assert 0.15 < float((slim == 0).float().mean()) < 0.9
    assert float(slim[slim > 0].mean()) > 0.05
    assert float((plain < 0.3).float().mean()) < 0.02


def test_the_threshold_is_one_for_all_layers(vgg: nn.Module, digits_task: Task) -> None:
    found = SLIM.apply(copy.deepcopy(vgg), context(vgg, digits_task))
    before, after = scales(vgg), scales(found)
    assert len(after) == round(0.5 * len(before))
    assert torch.equal(after.sort().values, before.sort().values[-len(after) :])
    again = SLIM.apply(copy.deepcopy(found), context(vgg, digits_task))
    assert len(scales(again)) == round(0.5 * len(after)), "a second pass takes half of the rest"
    assert parameters(again) < parameters(found) < parameters(vgg)


class Pair(nn.Module):
    """Two convolutions with a norm and a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


def pair(shift: float) -> tuple[Any, Tensor, Task]:
    torch.manual_seed(0)
    model, x = Pair().eval(), torch.randn(4, 2, 9, 9)
    with torch.no_grad():
        model.norm.weight[:3], model.norm.bias[:3] = 0, shift
    return model, x, Task("pair", x, calibration=[x], labelled=False)


def test_a_scale_of_zero_with_a_negative_shift_goes_exactly() -> None:
    model, x, _ = pair(-0.7)
    before = model(x)
    assert cut_silent_units(model, x).cut == {"a": 3}
    assert torch.allclose(model(x), before, atol=1e-6)


def test_a_positive_shift_moves_into_the_next_bias_and_is_exact_inside() -> None:
    model, x, task = pair(0.7)
    before = model(x).detach()
    assert cut_silent_units(copy.deepcopy(model), x).cut == {}
    for repair, exact in (("bias", True), ("none", False)):
        step = PruneChannels(
            sparsity=0.5, criterion="norm-scale", normalise="none", repair=repair, layers="a"
        )
        found = step.apply(copy.deepcopy(model), context(model, task))
        off = (found(x) - before).abs()
        assert found.a.weight.shape[0] == 3  # type: ignore[union-attr]
        assert (float(off[..., 1:-1, 1:-1].max()) < 1e-5) == exact
        assert float(off[..., 0, :].max()) > 1e-3, "with zero padding the border differs"


def test_the_recipe_halves_the_channels(vgg: nn.Module, digits_task: Task) -> None:
    model, before = copy.deepcopy(vgg), evaluate(vgg, digits_task).value
    sparsify, prune, finetune = load_recipe("netslim").steps
    # so few steps as an epoch of digits has need a stronger penalty and more of them afterwards
    sparsify = dataclasses.replace(sparsify, strength=0.01)  # type: ignore[call-arg]
    finetune = dataclasses.replace(finetune, epochs=10, rate=0.05)  # type: ignore[call-arg]
    for number, step in enumerate((sparsify, prune, finetune)):
        ctx = Context(digits_task, copy.deepcopy(vgg).eval(), torch.device("cpu"), number)
        model, _ = apply_step(step, model, ctx)
    assert len(scales(model)) <= round(0.5 * len(scales(vgg)))  # silent channels went before
    assert evaluate(model, digits_task).value > before - 0.12
