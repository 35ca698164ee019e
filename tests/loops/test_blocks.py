# SPDX-License-Identifier: Apache-2.0
"""Blocks are found in chains, not among experts; what stands in for them takes what they took."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.loops.blocks import Bypass, blocks_of, bypassed, channel_cosine
from rarefy.zoo.resnet import CifarResNet


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        return self.fc(x) * scale, None


class Layer(nn.Module):
    """Two experts side by side that read the same; the layer adds what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(2))

    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, None]:
        return x + sum(e(x, scale)[0] for e in self.experts), None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x, scale=0.5)
        return self.head(x)


def test_layers_are_blocks_and_their_experts_are_not() -> None:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 8)
    found = blocks_of(model, x)
    assert [b.name for b in found] == ["layers.0", "layers.1", "layers.2"]
    assert all(b.removable and b.arguments == 2 and b.outputs == 2 for b in found)
    with bypassed(model, found[1]):
        assert isinstance(model.layers[1], Bypass)
        h = model.layers[0](x, 0.5)[0]
        assert torch.equal(model(x), model.head(model.layers[2](h, 0.5)[0]))
    assert model.layers[1] is found[1].module


def test_blocks_of_a_residual_network() -> None:
    torch.manual_seed(0)
    found = blocks_of(CifarResNet(20, width=4), torch.randn(1, 3, 16, 16))
    assert [b.name for b in found] == [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert [b.name for b in found if not b.removable] == ["layer2.0", "layer3.0"]
    assert all(type(b.bypass()) is nn.Identity for b in found)


def test_a_block_that_runs_twice_is_left_out() -> None:
    torch.manual_seed(0)

    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.layers[0](x, scale=1.0)
            return super().forward(x)

    assert [b.name for b in blocks_of(Twice(), torch.randn(2, 8))] == ["layers.1", "layers.2"]


def test_blocks_can_be_named() -> None:
    torch.manual_seed(0)
    model, x = CifarResNet(20, width=4), torch.randn(1, 3, 16, 16)
    assert [b.name for b in blocks_of(model, x, ["layer1"])] == ["layer1"]
    with pytest.raises(ModelError, match=r"'layr\*' matches no block that runs once"):
        blocks_of(model, x, ["layr*"])


def test_cosine_of_maps_and_tokens() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(channel_cosine(x, 3 * x), torch.ones(2, dtype=torch.float64))
    tokens = torch.randn(2, 5, 8)
    assert torch.allclose(channel_cosine(tokens, -tokens), -torch.ones(10, dtype=torch.float64))
