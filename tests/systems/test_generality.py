# SPDX-License-Identifier: Apache-2.0
"""Any network: random graphs of layers, several outputs, sequences; cut, they compute what zeroed ones do."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.measure.counts import parameters
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task, call, tensors_of

KINDS = ("residual", "concat", "split", "grouped", "depthwise", "shuffle", "attention")


class Graph(nn.Module):
    """Blocks of the given kinds one after the other, for (B, 3, 8, 8)."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        self.kinds, self.heads = kinds, 2
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        groups = {"grouped": 2, "depthwise": width, "shuffle": 2}
        self.layers, self.second = nn.ModuleList(), nn.ModuleList()
        for kind in kinds:
            inputs = width // 2 if kind == "split" else width
            outputs = 3 * width if kind == "attention" else inputs
            size = 1 if kind in ("attention", "shuffle") else 3
            self.layers.append(
                nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups.get(kind, 1))
            )
            self.second.append(nn.Conv2d(2 * width if kind == "concat" else width, width, 1))
        self.norm, self.fc = nn.BatchNorm2d(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for kind, layer, second in zip(self.kinds, self.layers, self.second, strict=True):
            x = second(self.block(kind, layer, x)).relu()
        return self.fc(self.norm(x).mean((2, 3)))

    def block(self, kind: str, layer: nn.Module, x: Tensor) -> Tensor:
        if kind == "residual":
            return x + layer(x)
        if kind == "concat":
            return torch.cat([x, layer(x).relu()], 1)
        if kind == "split":
            left, right = x.chunk(2, 1)
            return torch.cat([layer(left), right], 1)
        if kind == "shuffle":
            y = layer(x)
            b, c, h, w = y.shape
            return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        if kind == "attention":
            b, _, h, w = x.shape
            y = layer(x).flatten(2).transpose(1, 2)
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in y.chunk(3, 2))
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return out.transpose(1, 2).unflatten(2, (h, w))
        return layer(x)


def cut(net: nn.Module, example: Any, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    ctx = Context(Task("none", example=example), net, torch.device("cpu"), 0)
    return PruneChannels(**fields).apply(copy.deepcopy(net), ctx), ctx.record


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    st.sampled_from([8, 12]),
    st.sampled_from(["global", "local"]),
    st.integers(0, 2**31),
)
def test_random_networks_are_cut_and_proven(
    kinds: list[str], width: int, allocation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    net = Graph(kinds, width).eval()
    x = torch.randn(2, 3, 8, 8)
    found, record = cut(net, x, allocation=allocation)
    assert record["difference"] <= 1e-4  # between the cut and the zeroed network
    assert found(x).shape == (2, 5)
    assert parameters(found) < parameters(net)
    assert found.fc.out_features == 5  # type: ignore[union-attr]
    found.train()(x).sum().backward()
    assert all(p.grad is not None for p in found.parameters() if p.requires_grad and p.numel())


class Detector(nn.Module):
    """Several outputs from a backbone: boxes and classes at two scales, as a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.down, self.smooth = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        fine = self.a(x).relu()
        coarse = self.down(self.b(fine).relu())
        maps = [self.smooth(fine + F.interpolate(coarse, scale_factor=2)), coarse]
        return {"boxes": [self.boxes(m) for m in maps], "classes": [self.classes(m) for m in maps]}


class Speaker(nn.Module):
    """A language model: embedding tied with the output, layer norms, causal attention, a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.place = nn.Embedding(50, 16), nn.Parameter(torch.randn(12, 16))
        self.n1, self.n2, self.n3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        y = self.n1(x)
        b, t, c = y.shape
        q, k, v = (
            f(y).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        y = self.n2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.n3(x) @ self.embed.weight.T


@pytest.mark.parametrize(
    ("net", "example"),
    [(Detector(), torch.randn(2, 3, 16, 16)), (Speaker(), torch.randint(0, 50, (2, 12)))],
    ids=["detector", "language model"],
)
def test_other_tasks_than_classification_shrink(net: nn.Module, example: Tensor) -> None:
    net.eval()
    before = [t.shape for t in tensors_of(call(net, example))]
    found, record = cut(net, example)
    assert [t.shape for t in tensors_of(call(found, example))] == before
    assert parameters(found) < 0.75 * parameters(net)
    assert record["difference"] <= 1e-4


def test_the_recipe_runs_on_a_network_that_nobody_named() -> None:
    torch.manual_seed(0)
    net = Graph(["residual", "attention", "concat"], 12).eval()
    x = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    task = Task("any", example=x[0], train=x, calibration=x, labelled=False)
    ctx, model = Context(task, net, torch.device("cpu"), 0), copy.deepcopy(net)
    for step in load_recipe("generality").steps:
        model = step.apply(model, ctx)
    assert parameters(model) < 0.6 * parameters(net)
    assert model(x[0]).shape == (4, 5)
