# SPDX-License-Identifier: Apache-2.0
"""Attention over channels, convolutions over tokens, and heads of which none can go."""

import copy

import pytest
import torch
from tests.graph.cuts import half, halves_and_agrees, zeroed
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut


class ChannelAttention(nn.Module):
    """Channels of a head look at each other, so a softmax runs over them: only whole heads can go."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(3, width), nn.Linear(width, 3 * width)
        self.out, self.heads = nn.Linear(width, 2), heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        shape = (b, n, 3, self.heads, c // self.heads)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q.transpose(-1, -2) @ k * 0.1).softmax(-1)
        x = (attention @ v.transpose(-1, -2)).transpose(-1, -2)
        return self.out(x.transpose(1, 2).reshape(b, n, c))


def test_heads_of_channel_attention_go_whole() -> None:
    model, x = ChannelAttention(), torch.randn(2, 5, 3)
    sizes = {g.name: g.size for g in couple(model, x).groups}
    assert sizes == {"stem": 24, "qkv": 4}
    halves_and_agrees(model, x)
    assert model.qkv.weight.shape == (36, 12)
    assert model.heads == 2


class Aggregated(nn.Module):
    """A convolution of kernel size one along the channels of stacked tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 16), nn.Linear(4, 16)
        self.join, self.out = nn.Conv1d(2, 1, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.join(torch.stack([self.one(x), self.two(x)], 1)).squeeze(1))


def test_a_convolution_that_sees_one_position_leaves_its_axis_free() -> None:
    model, x = Aggregated(), torch.randn(3, 4)
    assert {g.name: g.size for g in couple(model, x).groups} == {"one": 16}
    halves_and_agrees(model, x)
    wide = Aggregated()
    wide.join = nn.Conv1d(2, 1, 3, padding=1)
    assert not couple(wide, x).groups


class UnevenHeads(nn.Module):
    """Two and three heads have convolutions of their own: neither heads can go, but channels of all."""

    def __init__(self, heads: int = 5, channels: int = 6) -> None:
        super().__init__()
        self.heads, width = heads, heads * channels
        self.stem, self.value = nn.Linear(3, width), nn.Linear(width, width)
        self.splits = [2 * channels, 3 * channels]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(n, n, 3, padding=1, groups=n) for n in self.splits
        )
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        v = self.value(x).reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
        flat = v.transpose(2, 3).reshape(b, c, n)
        parts = zip(flat.split(self.splits, 1), self.convolutions, strict=True)
        local = torch.cat([f(part) for part, f in parts], 1)
        local = local.reshape(b, self.heads, c // self.heads, n).transpose(2, 3)
        return self.out((v * local).transpose(1, 2).reshape(b, n, c))


def test_where_no_head_can_go_channels_of_all_heads_do() -> None:
    model, x = UnevenHeads(), torch.randn(2, 7, 3)
    coupling = couple(model, x)
    assert {g.size for g in coupling.groups} == {30, 6}
    assert len({g.family for g in coupling.groups}) == 1
    halves_and_agrees(model, x)
    assert [c.weight.shape for c in model.convolutions] == [(6, 1, 3), (9, 1, 3)]
    assert model.heads == 5


class Attention(nn.Module):
    """Four heads of six dimensions, with a scale that no size decides."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 4, 6
        self.qkv, self.out = nn.Linear(5, 72), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) * 0.3).softmax(-1)
        x = (weights @ v).transpose(1, 2).reshape(b, n, self.heads * self.head_dim)
        return self.out(x)


@pytest.mark.parametrize("heads", [True, False])
def test_attention_loses_heads_or_dimensions_of_all_heads(heads: bool) -> None:
    model, x = Attention().eval(), torch.randn(2, 7, 5)
    before = copy.deepcopy(model)
    coupling = couple(model, x, heads=heads)
    assert sum(g.size for g in coupling.groups) == (4 if heads else 6)
    cuts = half(coupling)
    outcome = cut(model, coupling, cuts, x)
    assert outcome.cut
    assert not outcome.spared
    assert (model.heads, model.head_dim) == ((2, 6) if heads else (4, 3))
    expected = zeroed(before, coupling, coupling.removed(cuts))
    torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-5)
