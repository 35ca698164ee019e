# SPDX-License-Identifier: Apache-2.0
"""A weight of which some entries are zero whatever the optimiser does: w = m * v."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from rarefy.forms.shadow import Form, dress, find


class Mask(Form):
    """Multiplies by a fixed 0/1 mask, so momentum and weight decay can't wake a pruned weight.

    Args:
        keep: (shape of the weight) bool, True where the weight lives.
    """

    kind: ClassVar[str] = "mask"
    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep.bool())

    def forward(self, v: Tensor) -> Tensor:
        return v * self.keep

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def set_mask(module: nn.Module, keep: Tensor, name: str = "weight") -> None:
    """Prunes the entries of a weight where `keep` is False; a mask that is there is replaced."""
    mask = find(module, Mask, name)
    if mask is None:
        dress(module, name, Mask(keep))
    else:
        mask.keep = keep.bool()


def mask_of(module: nn.Module, name: str = "weight") -> Tensor:
    """The mask of a weight; all True where there is none, but zeros of a dense weight are not masked."""
    mask = find(module, Mask, name)
    if mask is not None:
        return mask.keep
    return torch.ones_like(getattr(module, name), dtype=torch.bool)
