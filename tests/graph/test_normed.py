# SPDX-License-Identifier: Apache-2.0
"""Kernels that are standardised before they are used, each with its group, and cut by half."""

import pytest
import torch
from tests.graph.cuts import cut_half, seen
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance `gain`², by way of a batch norm of weights."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.5).view(-1)
        kernel = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0)
        return F.conv2d(x, kernel.reshape_as(self.weight), self.bias, 1, 1, 1, self.groups)


def network(groups: int = 1) -> nn.Sequential:
    """Three such layers, the second maybe grouped."""
    torch.manual_seed(0)
    return nn.Sequential(
        Standardised(3, 8), nn.ReLU(), Standardised(8, 12, groups), nn.ReLU(), Standardised(12, 2)
    ).eval()


def by_hand(x: Tensor, layer: Standardised, rows: list[int], columns: list[int]) -> Tensor:
    """What a layer gives with some of its outputs and inputs alone."""
    w = layer.weight.detach()[rows][:, columns]
    mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), unbiased=False, keepdim=True)
    kernel = (w - mean) / (var + 1e-5).sqrt() * layer.gain.detach()[rows] * 0.5
    return F.conv2d(x, kernel, layer.bias.detach()[rows], padding=1)


def test_outputs_of_a_standardised_kernel_are_a_group_with_its_gain() -> None:
    found = seen(network(), IMAGE)
    assert found == {
        "0": (8, {"0.weight:0": 8, "0.bias:0": 8, "0.gain:0": 8, "2.weight:1": 8}),
        "2": (12, {"2.weight:0": 12, "2.bias:0": 12, "2.gain:0": 12, "4.weight:1": 12}),
    }


def test_after_a_cut_kernels_are_standardised_over_the_inputs_that_stay() -> None:
    model, before = network(), network()
    coupling, outcome = cut_half(model, IMAGE)
    assert not outcome.spared
    assert outcome.cut == {"0": 4, "2": 6}
    sizes = [tuple(model[i].weight.shape[:2]) for i in (0, 2, 4)]
    assert sizes == [(4, 3), (6, 4), (2, 6)]
    a = kept(before[0], model[0])
    b = kept(before[2], model[2])
    x = by_hand(IMAGE, before[0], a, [0, 1, 2]).relu()
    x = by_hand(x, before[2], b, a).relu()
    x = by_hand(x, before[4], [0, 1], b)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE), x, rtol=1e-4, atol=1e-5)


def kept(before: Standardised, after: Standardised) -> list[int]:
    """Which outputs stayed, told by their biases."""
    assert before.bias is not None
    assert after.bias is not None
    whole = before.bias.tolist()
    return [whole.index(b) for b in after.bias.tolist()]


@pytest.mark.parametrize("groups", [2, 4])
def test_standardised_kernels_of_groups_shrink(groups: int) -> None:
    model = network(groups)
    _, outcome = cut_half(model, IMAGE)
    assert not outcome.spared
    assert model[2].groups == groups // (1 if groups == 2 else 2)
    assert sum(p.numel() for p in model.parameters()) < 0.7 * sum(
        p.numel() for p in network(groups).parameters()
    )
    assert model(IMAGE).shape == (2, 2, 6, 6)
