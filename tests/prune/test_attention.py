# SPDX-License-Identifier: Apache-2.0
"""Split attention gives what torch's gives, however it is called, and its heads can leave."""

import copy

import pytest
import torch
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import cut
from rarefy.prune.attention import SplitAttention, split_attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_computes_what_torchs_computes(
    batch_first: bool, bias: bool, need_weights: bool
) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    ours = SplitAttention(theirs)
    L, S, B = 5, 7, 2
    q, k = (torch.randn(B, n, 12) for n in (L, S))
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0, 5:] = True
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    by_head = torch.randn(B * 3, L, S)
    for kwargs in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": by_head},
        {"attn_mask": torch.randn(L, S)},
        {"attn_mask": causal, "key_padding_mask": padding, "average_attn_weights": False},
    ):
        expected = theirs(q, k, k, need_weights=need_weights, **kwargs)
        found = ours(q, k, k, need_weights=need_weights, **kwargs)
        assert torch.allclose(found[0], expected[0], atol=1e-5)
        if need_weights:
            assert torch.allclose(found[1], expected[1], atol=1e-6)
        else:
            assert found[1] is None
    single = q[0] if batch_first else q[:, 0]
    assert torch.allclose(
        ours(single, single, single)[0], theirs(single, single, single)[0], atol=1e-5
    )


def test_heads_leave_a_torch_encoder_and_leave_what_zeroing_leaves() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)).eval()
    x = torch.randn(3, 5, 16)
    before = model(x)
    assert split_attention(model) == ["0.layers.0.self_attn", "0.layers.1.self_attn"]
    assert torch.allclose(model(x), before, atol=1e-5)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed[0].layers[0].self_attn.out.weight[:, 4:8] = 0  # type: ignore[union-attr, index]
    coupling = couple(model, x)
    group = next(g for g in coupling.groups if g.name == "0.layers.0.self_attn.query")
    assert group.size == 4
    assert cut(model, coupling, [(group, torch.tensor([1]))], x).cut == {group.name: 1}
    assert model[0].layers[0].self_attn.query.weight.shape == (12, 16)  # type: ignore[union-attr, index]
    assert torch.allclose(model(x), zeroed(x), atol=1e-5)
    model.train()(x).sum().backward()


def test_what_has_extra_keys_is_left_alone() -> None:
    model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(8, 2, add_zero_attn=True))
    assert split_attention(model) == []
    assert isinstance(model[1], nn.MultiheadAttention)
