# SPDX-License-Identifier: Apache-2.0
"""Moments without data: closed forms against draws, and a network against its own activations."""

import math

import pytest
import torch
from torch import Tensor, nn

from rarefy.quantize.calibration import look
from rarefy.quantize.flow import flow_of
from rarefy.quantize.kernels import ONNXRUNTIME_CPU
from rarefy.quantize.moments import Moments, clipped_normal, moments_of, through_layer


@pytest.mark.parametrize("ends", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, math.inf)])
def test_a_clipped_normal_s_moments_are_those_of_draws(ends: tuple[float, float]) -> None:
    mean = torch.tensor([-2.0, -0.3, 0.0, 1.0, 5.0], dtype=torch.float64)
    variance = torch.tensor([0.5, 1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1_000_000, 5, generator=draw, dtype=torch.float64) * variance.sqrt() + mean
    y = x.clamp(*ends)
    first, second = clipped_normal(mean, variance, *ends)
    assert torch.allclose(first, y.mean(0), atol=6e-3)
    assert torch.allclose(second, y.var(0), atol=2e-2)


def test_relu_of_a_normal_in_the_paper_s_words() -> None:
    beta, gamma = torch.tensor([0.7], dtype=torch.float64), 1.3
    first, _ = clipped_normal(beta, torch.tensor([gamma**2], dtype=torch.float64), 0.0, math.inf)
    r = 0.7 / 1.3
    phi, Phi = math.exp(-(r**2) / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(r / 2**0.5))
    assert float(first) == pytest.approx(gamma * phi + 0.7 * Phi, abs=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_s_moments_follow_from_its_inputs(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 1, groups=groups)
    mean, variance = torch.randn(4).double(), torch.rand(4).double() + 0.1
    found = through_layer(layer, Moments(mean, variance))
    x = torch.randn(200_000, 4).double() * variance.sqrt() + mean
    y = layer.double()(x.view(-1, 4, 1, 1)).flatten(1).detach()
    assert torch.allclose(found.mean, y.mean(0), atol=2e-2)
    assert torch.allclose(found.variance, y.var(0), rtol=3e-2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.c(torch.cat([y + self.b(y), y], 1)).sigmoid().mean((2, 3))


def test_every_known_operator_hands_moments_on() -> None:
    model = Net().eval()
    x = torch.randn(4, 3, 8, 8)
    flow = flow_of(*look(model, x), ONNXRUNTIME_CPU)
    ones = torch.ones(3, dtype=torch.float64)
    found = moments_of(model, flow, {}, {"input#0": Moments(0 * ones, ones, -3.0, 3.0)})
    by_site = {value.site: m for value, m in found.items()}
    assert {":relu#0", ":add#0", ":cat#0", "c:conv2d#0"} <= by_site.keys()
    assert ":sigmoid#0" not in by_site  # nobody knows it, nor what comes behind
    assert ":mean#0" not in by_site
    assert by_site[":relu#0"].range(6)[0] == 0
    assert by_site["input#0"].range(6) == (-3.0, 3.0)
    assert len(by_site[":cat#0"].mean) == 8
    a = model.a.weight.flatten(1).double().detach()
    assert torch.allclose(by_site["a:conv2d#0"].variance, a.square().sum(1))
