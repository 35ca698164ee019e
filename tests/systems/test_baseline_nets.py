# SPDX-License-Identifier: Apache-2.0
"""Row baseline-nets: exact counts of weights and multiply-accumulates of the literature's networks."""

import pytest
import torch
import torchvision

from rarefy.measure.counts import macs, parameters
from rarefy.zoo.models import load_model


@pytest.mark.parametrize(
    ("name", "shape", "weights", "products"),
    [
        ("lenet300", (1, 28, 28), 266_610, 784 * 300 + 300 * 100 + 100 * 10),
        (
            "lenet5",
            (1, 28, 28),
            431_080,
            20 * 25 * 24 * 24 + 50 * 500 * 8 * 8 + 800 * 500 + 500 * 10,
        ),
    ],
)
def test_lenets(name, shape, weights, products):
    network = load_model(f"zoo:{name}")
    assert parameters(network) == weights
    assert macs(network, torch.zeros(2, *shape)) == products


@pytest.mark.parametrize(
    ("depth", "weights"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)]
)
def test_cifar_resnets(depth, weights):
    """Three stages of 2n convolutions: widths 16, 32, 64 on 32, 16 and 8 pixels, by hand."""
    n = (depth - 2) // 6
    first = 3 * 16 * 9 * 32**2
    stages = [
        ((2 * n - 1) * width + before) * width * 9 * side**2
        for width, before, side in ((16, 16, 32), (32, 16, 16), (64, 32, 8))
    ]
    network = load_model(f"zoo:resnet{depth}")
    assert parameters(network) == weights
    assert macs(network, torch.zeros(1, 3, 32, 32)) == first + sum(stages) + 64 * 10


@pytest.mark.parametrize(
    ("name", "weights", "millions"),
    [
        ("alexnet", 61_100_840, 714),
        ("vgg16", 138_357_544, 15_470),
        ("googlenet", 6_624_904, 1_498),
        ("resnet50", 25_557_032, 4_089),
    ],
)
def test_imagenet_networks(name, weights, millions):
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **extra).eval()
        example = torch.zeros(1, 3, 224, 224)
        assert parameters(network) == weights
        assert round(macs(network, example) / 1e6) == millions
