# SPDX-License-Identifier: Apache-2.0
"""Corrected biases: mean results are back where they were, and the network is nearer to the original."""

import copy

import torch
from torch import Tensor, nn

from rarefy.quantize.kernels import ONNXRUNTIME_CPU
from rarefy.quantize.mean_outputs import correct_means, joined
from rarefy.quantize.prepared import prepare
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6),
    ).eval()  # fmt: skip


def test_one_layer_has_its_mean_back() -> None:
    model, x = network(), torch.rand(32, 3, 10, 10) + 0.3
    exact = copy.deepcopy(model)
    prepared = prepare(model, x, ONNXRUNTIME_CPU, "*", ("2", "6"))
    ranges = {"input#0": (0.0, 1.3), "1:relu#0": (0.0, 4.0)}
    how = prepared.rounding(ranges, prepared.codes(ranges, bits=3))
    assert correct_means(model, x, how) == ["0"]
    weight = how.weight("0")
    assert weight is not None
    rounded = nn.functional.conv2d(
        torch.round(x / (1.3 / 255)) * (1.3 / 255), weight, model[0].bias
    )
    means, wanted = rounded.mean((0, 2, 3)), exact[0](x).mean((0, 2, 3))
    assert torch.allclose(means, wanted, atol=1e-4)
    assert not torch.allclose(model[0].bias, exact[0].bias, atol=1e-4)


def test_the_quantised_network_is_nearer_to_the_original() -> None:
    x = torch.rand(64, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    task = Task("noise", x[:2], calibration=[x[:32]], labelled=False)
    exact = network()
    errors = {}
    for correct in (False, True):
        context = Context(task, exact, torch.device("cpu"))
        found = StaticInt8(bits=4, compensate=False, correct=correct).apply(
            copy.deepcopy(exact), context
        )
        errors[correct] = float((found(x[32:]) - exact(x[32:])).norm())
    assert errors[True] < 0.7 * errors[False]


def test_batches_that_fit_are_one() -> None:
    a, b = torch.zeros(2, 3), torch.ones(4, 3)
    both = joined([a, b])
    assert isinstance(both, Tensor)
    assert both.shape == (6, 3)
    named = joined([{"x": a, "y": a}, {"x": b, "y": b}])
    assert {name: len(t) for name, t in named.items()} == {"x": 6, "y": 6}  # type: ignore[union-attr]
    assert joined([a, torch.zeros(2, 5)]) is a
