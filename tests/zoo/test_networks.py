# SPDX-License-Identifier: Apache-2.0
"""The reference networks have exactly the sizes that the literature states."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rarefy.measure.counts import macs
from rarefy.zoo.lenet import DigitsNet, LeNet5, LeNet300
from rarefy.zoo.resnet import CifarResNet
from rarefy.zoo.vgg import SmallVGG

NETWORKS: list[tuple[Callable[[], nn.Module], tuple[int, int, int], int, int]] = [
    (LeNet300, (1, 28, 28), 266_610, 784 * 300 + 300 * 100 + 100 * 10),
    (LeNet5, (1, 28, 28), 431_080, 24**2 * 500 + 8**2 * 25_000 + 400_000 + 5_000),
    (DigitsNet, (1, 8, 8), 38_282, 8**2 * 144 + 8**2 * 4_608 + 32_768 + 640),
    (SmallVGG, (3, 32, 32), 1_148_874, 1_769_472 + 3 * 37_748_736 + 2 * 18_874_368 + 2_560),
    (lambda: CifarResNet(20), (3, 32, 32), 269_722, 40_551_040),
    (lambda: CifarResNet(32), (3, 32, 32), 464_154, 68_862_592),
    (lambda: CifarResNet(56), (3, 32, 32), 853_018, 125_485_696),
    (lambda: CifarResNet(110), (3, 32, 32), 1_727_962, 252_887_680),
]


def residual_macs(depth: int) -> int:
    """Multiply-accumulates of a CIFAR ResNet from the paper's table: 2n layers in each of three maps."""
    n = (depth - 2) // 6
    first = 32**2 * 9 * 3 * 16
    stages = 2 * n * 32**2 * 9 * 16 * 16
    for channels, side in ((32, 16), (64, 8)):
        stages += side**2 * 9 * channels * (channels // 2 + (2 * n - 1) * channels)
    return first + stages + 640


@pytest.mark.parametrize(("make", "shape", "parameters", "multiplications"), NETWORKS)
def test_sizes_are_exact(
    make: Callable[[], nn.Module], shape: tuple[int, ...], parameters: int, multiplications: int
) -> None:
    model = make().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    x = torch.randn(2, *shape)
    assert model(x).shape == (2, 10)
    assert macs(model, x) == multiplications


@pytest.mark.parametrize("depth", [20, 32, 56, 110])
def test_macs_of_residual_networks_follow_from_the_table(depth: int) -> None:
    stated = {n: m for (_, _, n, m) in NETWORKS}
    parameters = sum(p.numel() for p in CifarResNet(depth).parameters())
    assert stated[parameters] == residual_macs(depth)


def test_a_residual_network_has_the_depth_of_its_name() -> None:
    for depth in (20, 44):
        kinds = (nn.Conv2d, nn.Linear)
        assert sum(isinstance(m, kinds) for m in CifarResNet(depth).modules()) == depth
    with pytest.raises(ValueError, match="depth 21 is not 6n"):
        CifarResNet(21)


def test_the_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = CifarResNet(20).layer2[0]
    for module in (block.conv1, block.conv2):
        nn.init.zeros_(module.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block.eval()(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_classes_channels_and_width_can_be_chosen() -> None:
    assert CifarResNet(20, classes=7, width=4)(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert SmallVGG(channels=1, classes=3, width=8)(torch.randn(1, 1, 28, 28)).shape == (1, 3)
    assert LeNet300(classes=4, pixels=64)(torch.randn(1, 1, 8, 8)).shape == (1, 4)
