# SPDX-License-Identifier: Apache-2.0
"""A weight whose entries share a few values: w = levels[indices], the levels being what is trained."""

from typing import ClassVar

import torch
from torch import Tensor

from rarefy.forms.shadow import Form

PIECE = 1 << 18  # entries that are added up together


class Codebook(Form):
    """Looks every entry up among K levels.

    The gradient of a level is the sum of the gradients of its entries (Han, Mao, Dally: Deep Compression,
    2016, arXiv 1510.00149, section 3.3). With `zero` there is one more level, index 0, that is exactly 0
    and never moves, for the entries that were pruned.

    Args:
        indices: (shape of the weight) integers into the levels.
        levels: how many trained levels there are (without the fixed zero).
        zero: whether index 0 is the fixed zero.
    """

    kind: ClassVar[str] = "codebook"
    indices: Tensor

    def __init__(self, indices: Tensor, levels: int, zero: bool = False) -> None:
        super().__init__()
        self.levels, self.zero = levels, zero
        size = levels + zero
        self.register_buffer("indices", indices.to(torch.uint8 if size <= 256 else torch.int32))

    def forward(self, levels: Tensor) -> Tensor:  # (K,) -> shape of the weight
        if self.zero:
            levels = torch.cat([levels.new_zeros(1), levels])
        return levels[self.indices.long()]

    def right_inverse(self, w: Tensor) -> Tensor:
        """The mean of the entries that share an index, (K,)."""
        size = self.levels + self.zero
        total = w.new_zeros(size, dtype=torch.float64)
        count = torch.zeros(size, dtype=torch.long, device=w.device)
        parts = self.indices.flatten().split(PIECE), w.flatten().split(PIECE)
        for indices, values in zip(*parts, strict=True):
            total.index_add_(0, indices.long(), values.double())
            count += torch.bincount(indices.long(), minlength=size)
        return (total / count.clamp(min=1)).to(w.dtype)[int(self.zero) :]
