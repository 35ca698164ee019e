# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of every attention in a network, and losses on the relations between them.

Jiao et al.: TinyBERT, 2019, arXiv 1909.10351 (attention maps, hidden states, embeddings); Wang, Wei, Dong,
Bao, Yang, Zhou: MiniLM, 2020, arXiv 2002.10957 (value relations of the last layer).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Attended:
    """What one attention was given.

    Attributes:
        query, key, value: (B, heads, L, d).
        mask: added to the scores or, if bool, True where a key is looked at; None for all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None


@contextmanager
def attending() -> Iterator[list[Attended]]:
    """Catches every call of torch's scaled dot-product attention inside the block, in order.

    Networks that multiply queries and keys by hand show nothing here. Torch's fused encoder layers are kept
    apart meanwhile, so that their attention is called at all.
    """
    found: list[Attended] = []
    plain, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()

    def noting(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attn_mask", args[0] if args else None)
        if kwargs.get("is_causal", args[2] if len(args) > 2 else False):
            length = query.shape[-2], key.shape[-2]
            mask = torch.ones(length, dtype=torch.bool, device=query.device).tril()
        found.append(Attended(query, key, value, mask))
        return plain(query, key, value, *args, **kwargs)

    F.scaled_dot_product_attention = noting
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield found
    finally:
        F.scaled_dot_product_attention = plain
        torch.backends.mha.set_fastpath_enabled(fast)


def log_relations(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """log softmax(x yᵀ / sqrt(d)): two (B, heads, L, d) to (B, heads, L, L)."""
    scores = x.float() @ y.float().mT / x.shape[-1] ** 0.5
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -1e4)  # finite, so that 0 · log 0 stays 0
    elif mask is not None:
        scores = scores + mask.float().clamp(min=-1e4)
    return F.log_softmax(scores, dim=-1)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) of the last axis, a mean over the others; heads are averaged if their numbers differ."""
    if log_q.shape[1] != log_p.shape[1]:
        log_q, log_p = (x.exp().mean(1).clamp(min=1e-12).log() for x in (log_q, log_p))
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()


def attention_map_loss(student: Attended, teacher: Attended) -> Tensor:
    """KL(teacher || student) of what each query attends to, a mean over examples, heads and queries."""
    return divergence(
        log_relations(student.query, student.key, student.mask),
        log_relations(teacher.query, teacher.key, teacher.mask),
    )


def value_relation_loss(student: Attended, teacher: Attended) -> Tensor:
    """KL divergence of the relations between values, softmax(V Vᵀ / sqrt(d)); widths may differ."""
    return divergence(
        log_relations(student.value, student.value, student.mask),
        log_relations(teacher.value, teacher.value, teacher.mask),
    )


def layer_map(students: int, teachers: int) -> list[int]:
    """For each of the student's layers the teacher's that it follows, evenly, the last one the last.

    Examples:
        >>> layer_map(3, 6)
        [1, 3, 5]
    """
    return [max(round((i + 1) * teachers / students) - 1, 0) for i in range(students)]
