# SPDX-License-Identifier: Apache-2.0
"""Norms that are folded and still learn compute what they computed before, in training and afterwards."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rarefy.forms.shadow import bake
from rarefy.quantize.folded_norm import (
    LEAST,
    finish_folding,
    fold_for_training,
    gain_of,
    norms_behind,
)

LAYERS: dict[str, Callable[[], tuple[nn.Module, type[nn.Module], tuple[int, ...]]]] = {
    "conv": lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d, (8, 4, 6, 6)),
    "without bias": lambda: (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d, (8, 4, 6, 6)),
    "depthwise": lambda: (nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d, (8, 6, 6, 6)),
    "transposed": lambda: (
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d,
        (8, 4, 5, 5),
    ),
    "linear": lambda: (nn.Linear(5, 6), nn.BatchNorm1d, (16, 5)),
}


def network(kind: str) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A layer and a norm whose statistics and factors are no longer those of the start."""
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[kind]()
    model = nn.Sequential(layer, norm(6))
    with torch.no_grad():
        model[1].weight.uniform_(-2, 2)
        model[1].bias.uniform_(-1, 1)
    for _ in range(5):
        model(2 * torch.randn(shape) + 0.5)
    return model.eval(), shape


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_changes_in_training_nor_in_eval_mode(kind: str) -> None:
    plain, shape = network(kind)
    folded = copy.deepcopy(plain)
    fold_for_training(folded, [("0", "1")])
    x = torch.randn(shape)
    assert torch.allclose(folded(x), plain(x), atol=1e-5)
    plain.train(), folded.train()
    y, z = folded(x), plain(x)
    assert torch.allclose(y, z, atol=1e-4)
    g = torch.randn(z.shape)
    y.backward(g), z.backward(g)
    slope = folded[0].parametrizations.weight.original.grad
    scale = float(plain[0].weight.grad.abs().max())
    assert torch.allclose(slope, plain[0].weight.grad, atol=1e-3 * scale + 1e-5)
    plain.eval(), folded.eval()
    assert torch.allclose(folded(x), plain(x), atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_finished_layer_alone_computes_both(kind: str) -> None:
    plain, shape = network(kind)
    folded = copy.deepcopy(plain)
    fold_for_training(folded, [("0", "1")])
    finish_folding(folded, [("0", "1")])
    bake(folded)
    assert type(folded[1]) is nn.Identity
    assert not hasattr(folded[0], "parametrizations")
    x = torch.randn(shape)
    assert torch.allclose(folded(x), plain(x), atol=1e-5)


def test_a_channel_that_is_switched_off_stays_finite() -> None:
    plain, shape = network("conv")
    with torch.no_grad():
        plain[1].weight[2] = 0
    folded = copy.deepcopy(plain)
    fold_for_training(folded, [("0", "1")])
    assert float(gain_of(plain[1])[2].detach()) == pytest.approx(LEAST)
    x = torch.randn(shape)
    assert torch.allclose(folded(x), plain(x), atol=1e-5)
    folded.train()(x).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in folded.parameters())


def test_norms_that_still_learn_are_found_and_copied_with_their_layer() -> None:
    folded, shape = network("conv")
    fold_for_training(folded, [("0", "1")])
    twin = copy.deepcopy(folded)
    assert norms_behind(twin) == [twin[1].norm]
    before = folded(torch.ones(shape))
    with torch.no_grad():
        twin[1].norm.running_var.mul_(4)
    assert torch.equal(folded(torch.ones(shape)), before)
    gain = twin[0].parametrizations.weight[0].norm[0]
    assert gain is twin[1].norm
