# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention in a form in which single heads can leave.

`torch.nn.MultiheadAttention` ties the number of its heads to the width that it is given, so no head can go
alone. Here queries, keys, values and the output have linear layers of their own, and the number of heads is
what their sizes say.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitAttention(nn.Module):
    """Computes what a `torch.nn.MultiheadAttention` computes and is called as it.

    Args:
        attention: whose weights are copied; with one width for queries, keys and values.

    Attributes:
        query, key, value, out: linear layers; the first three give heads · head_dim features each.
        head_dim: features of one head.
        dropout: on the attention weights, in training.
        batch_first: whether inputs are (B, L, E) or (L, B, E).
        in_proj_bias: None; tells torch's encoder layers to leave their fused path alone.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        names = ("query", "key", "value")
        weights = attention.in_proj_weight.detach().chunk(3)
        given = attention.in_proj_bias
        biases = given.detach().chunk(3) if given is not None else (None,) * 3
        for name, weight, bias in zip(names, weights, biases, strict=True):
            self.add_module(name, linear(weight, bias))
        self.out: nn.Linear = attention.out_proj
        self.head_dim = attention.head_dim
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.in_proj_bias = None
        self._qkv_same_embed_dim = True
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention outputs, and the weights if they are asked for; see `torch.nn.MultiheadAttention`."""
        flat = query.dim() == 2
        inputs = [
            x.unsqueeze(0 if self.batch_first else 1) if flat else x for x in (query, key, value)
        ]
        if not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        layers: tuple[Any, ...] = (self.query, self.key, self.value)
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, L, head_dim)
            for layer, x in zip(layers, inputs, strict=True)
        )
        mask = joined_mask(q, k, key_padding_mask, attn_mask)
        weights = None
        share = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), share)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, share)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        y = y if self.batch_first else y.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if flat:
            y = y.squeeze(0 if self.batch_first else 1)
            weights = weights.squeeze(0) if weights is not None else None
        return y, weights


def joined_mask(q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """One mask to add to the scores (B, heads, L, S), from the two that attention may be given.

    Args:
        q, k: (B, heads, L or S, head_dim).
        padding: (B, S) or (S,), True or -inf where a key is not looked at.
        mask: (L, S) or (B · heads, L, S); one a head only while all heads are there.
    """
    total = None
    if padding is not None:
        total = additive(padding, q).reshape(-1, 1, 1, k.shape[2])
    if mask is not None:
        own = additive(mask, q)
        own = own.unflatten(0, (q.shape[0], -1)) if own.dim() == 3 else own
        total = own if total is None else total + own
    return total


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of flags as zeros and minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(like)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer that holds a copy of a weight (out, in) and bias."""
    layer = nn.Linear(1, 1, bias is not None, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def split_attention(model: nn.Module) -> list[str]:
    """Replaces every `torch.nn.MultiheadAttention` that has one width for all by its split form.

    Returns:
        The paths of those that were replaced.
    """
    found = []
    for path, module in list(model.named_modules()):
        if not path or not isinstance(module, nn.MultiheadAttention):
            continue
        plain = module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
        if plain and not hasattr(module, "parametrizations"):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, SplitAttention(module))
            found.append(path)
    return found
