# SPDX-License-Identifier: Apache-2.0
"""Attention is seen as torch computes it, and nothing stays patched."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rarefy.distill.attended import (
    Attended,
    attending,
    attention_map_loss,
    layer_map,
    log_relations,
    value_relation_loss,
)


def encoder(heads: int = 4) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, heads, 32, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()


def test_every_call_is_seen_in_order_and_nothing_stays() -> None:
    model, x = encoder(), torch.randn(2, 5, 16)
    plain = F.scaled_dot_product_attention
    with torch.no_grad(), attending() as calls:
        seen = model(x)
    assert F.scaled_dot_product_attention is plain
    assert torch.backends.mha.get_fastpath_enabled()
    assert [tuple(c.query.shape) for c in calls] == [(2, 4, 5, 4)] * 3
    with torch.no_grad():
        torch.testing.assert_close(model(x), seen, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), attending():
        raise RuntimeError("stop")
    assert F.scaled_dot_product_attention is plain


@pytest.mark.parametrize("causal", [False, True])
def test_maps_are_those_that_torch_uses(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
    mask = None if causal else torch.rand(2, 1, 6, 6) > 0.3
    if mask is not None:
        mask[..., 0] = True
    with attending() as calls:
        given = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    weights = log_relations(calls[0].query, calls[0].key, calls[0].mask).exp()
    torch.testing.assert_close(weights @ v, given, rtol=1e-4, atol=1e-5)
    additive = torch.zeros(6, 6).masked_fill(~calls[0].mask[-1, -1].bool(), -torch.inf)  # type: ignore[index]
    assert bool(torch.isfinite(log_relations(q, k, additive)).all())


def test_losses_are_zero_for_equal_and_see_differences() -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
    same, other = Attended(q, k, v), Attended(k, q, q)
    for loss in (attention_map_loss, value_relation_loss):
        assert float(loss(same, same)) == pytest.approx(0, abs=1e-6)
        assert float(loss(other, same)) > 0.01
    turned = torch.linalg.qr(torch.randn(8, 8))[0]
    assert float(value_relation_loss(Attended(q, k, v @ turned), same)) == pytest.approx(
        0, abs=1e-5
    )
    narrow = Attended(q[..., :4], k[..., :4], v[..., :4])
    fewer = Attended(q[:, :2], k[:, :2], v[:, :2])
    for one in (narrow, fewer):
        assert bool(torch.isfinite(attention_map_loss(one, same)))
        assert bool(torch.isfinite(value_relation_loss(one, same)))


def test_layers_are_followed_evenly() -> None:
    assert layer_map(3, 6) == [1, 3, 5]
    assert layer_map(6, 6) == list(range(6))
    assert layer_map(1, 12) == [11]
    for students in range(1, 7):
        for teachers in range(1, 13):
            chosen = layer_map(students, teachers)
            assert chosen == sorted(chosen)
            assert chosen[-1] == teachers - 1
            assert min(chosen) >= 0
