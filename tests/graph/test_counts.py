# SPDX-License-Identifier: Apache-2.0
"""Attention: heads, query groups and embeddings are cut as wholes, and their numbers are mended."""

import pytest
import torch
from tests.graph.cuts import cut_half, halves_and_agrees, seen
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.graph.coupling import couple

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Packed(nn.Module):
    """Self-attention of four heads of two, its three projections in one matrix."""

    def __init__(self, fused: bool, wired: bool = False) -> None:
        super().__init__()
        self.fused, self.wired, self.heads, self.size = fused, wired, 4, 2
        self.embed, self.qkv = nn.Linear(5, 8), nn.Linear(8, 24)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        size = c // self.heads if self.wired else self.size
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * 2**-0.5).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, n, c if self.wired else self.heads * self.size)
        return self.head(x + self.out(y))


EMBEDDING = {"embed.weight:0": 8, "embed.bias:0": 8, "qkv.weight:1": 8, "out.weight:0": 8,
             "out.bias:0": 8, "head.weight:1": 8}  # fmt: skip
HEADS = {"qkv.weight:0": 24, "qkv.bias:0": 24, "out.weight:1": 8}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wired", [False, True])
def test_a_packed_projection_loses_whole_heads_of_all_three(fused: bool, wired: bool) -> None:
    model = Packed(fused, wired)
    assert seen(model, X) == {"embed": (8, EMBEDDING), "qkv": (4, HEADS)}
    qkv = next(m for m in couple(model, X).group("qkv").members if m.name == "qkv.weight")
    for head in range(4):
        expected = [part * 8 + 2 * head + i for part in range(3) for i in range(2)]
        assert qkv.places[qkv.units == head].tolist() == expected
    halves_and_agrees(model, X)
    assert model.heads == 2
    assert model.size == 2
    assert model.qkv.weight.shape == (12, 4)
    assert (model.qkv.in_features, model.qkv.out_features) == (4, 12)


@pytest.mark.parametrize(("wired", "families"), [(False, 2), (True, 1)])
def test_heads_and_embedding_shrink_by_one_share_if_the_code_divides_them(
    wired: bool, families: int
) -> None:
    coupling = couple(Packed(True, wired), X)
    assert len({g.family for g in coupling.groups}) == families
    expected = {"embed": 2, "qkv": 1} if wired else {"embed": 2}
    assert coupling.even({"embed": 2, "qkv": 1} if wired else {"embed": 2}) == expected
    assert coupling.even({"qkv": 2}).keys() == ({"embed", "qkv"} if wired else {"qkv"})


class GroupedQueries(nn.Module):
    """Four query heads of three share two heads of keys and values."""

    def __init__(self, native: bool) -> None:
        super().__init__()
        self.native, self.heads, self.shared, self.size = native, 4, 2, 3
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 6), nn.Linear(5, 6)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, t, self.shared, self.size).transpose(1, 2)
        v = self.v(x).view(b, t, self.shared, self.size).transpose(1, 2)
        if self.native:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (z.repeat_interleave(self.heads // self.shared, 1) for z in (k, v))
            y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("native", [False, True])
def test_a_group_of_queries_goes_with_its_keys_and_values(native: bool) -> None:
    model = GroupedQueries(native)
    touched = {"q.weight:0": 12, "q.bias:0": 12, "k.weight:0": 6, "k.bias:0": 6,
               "v.weight:0": 6, "v.bias:0": 6, "out.weight:1": 12}  # fmt: skip
    assert seen(model, X) == {"q": (2, touched)}
    halves_and_agrees(model, X)
    assert (model.heads, model.shared, model.size) == (2, 1, 3)
    assert model.q.weight.shape == (6, 5)
    assert model.k.weight.shape == (3, 5)


def test_the_size_of_a_head_goes_only_if_its_scale_does_not_hang_on_it() -> None:
    """Without a scale of its own the product is divided by the root of the size."""

    class One(nn.Module):
        def __init__(self, scale: float | None) -> None:
            super().__init__()
            self.scale = scale
            self.q, self.k, self.v = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p(x)[:, None] for p in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v, scale=self.scale)[:, 0])

    values = {"v.weight:0": 4, "v.bias:0": 4, "out.weight:1": 4}
    queries = {"q.weight:0": 6, "q.bias:0": 6, "k.weight:0": 6, "k.bias:0": 6}
    assert seen(One(0.5), X) == {"q": (6, queries), "v": (4, values)}
    assert seen(One(None), X) == {"v": (4, values)}
    halves_and_agrees(One(0.5), X)
    halves_and_agrees(One(None), X)


class Multi(nn.Module):
    """`nn.MultiheadAttention` between two linear layers, with a shortcut."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}])
def test_multihead_attention_loses_heads_and_embedding_by_one_share(
    options: dict[str, bool],
) -> None:
    model = Multi(**options)
    found = seen(model, X)
    assert {name: size for name, (size, _) in found.items()} == {"embed": 8, "attention": 4}
    coupling, outcome = cut_half(model, X)
    assert len({g.family for g in coupling.groups}) == 1
    assert outcome.cut == {"embed": 4, "attention": 2}
    assert not outcome.spared
    held = model.attention
    assert (held.embed_dim, held.num_heads, held.head_dim) == (4, 2, 2)
    assert held.in_proj_weight.shape == (12, 4)
    assert held.out_proj.weight.shape == (4, 4)
    assert (held.out_proj.in_features, held.out_proj.out_features) == (4, 4)
    model.train()(X)


def test_normalised_shapes_in_the_code_are_kept() -> None:
    class Normed(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.width = how, 8
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            shape = {"number": (8,), "attribute": (self.width,), "size": y.shape[-1:]}[self.how]
            return self.b(F.layer_norm(y, shape))

    assert seen(Normed("number"), X) == {}
    for how in ("attribute", "size"):
        model = Normed(how)
        _, outcome = cut_half(model, X)
        assert outcome.cut == {"a": 4}
        assert model.width == (4 if how == "attribute" else 8)


def test_groups_in_the_code_keep_their_number() -> None:
    class Grouped(nn.Module):
        def __init__(self, number: bool) -> None:
            super().__init__()
            self.number, self.groups = number, 2
            self.a, self.weight = nn.Conv1d(3, 4, 1), nn.Parameter(torch.randn(6, 2, 1))
            self.b = nn.Conv1d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            groups = 2 if self.number else self.groups
            return self.b(F.conv1d(self.a(x), self.weight, groups=groups))

    x = torch.randn(2, 3, 7)
    for number in (False, True):
        model = Grouped(number)
        halves_and_agrees(model, x)
        assert model.weight.shape[0] < 6
        assert model.groups == 2
