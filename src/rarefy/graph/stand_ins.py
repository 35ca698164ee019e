# SPDX-License-Identifier: Apache-2.0
"""Values that stand in for parameters while a cut is proven: zeros where it cuts, and something to see."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rarefy.graph.fields import along


def zeros_beside(values: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """A copy of a tensor with zeros everywhere but at the positions that stay along some axes."""
    masks = {}
    for axis, positions in kept.items():
        masks[axis] = torch.zeros(values.shape[axis], dtype=torch.bool, device=values.device)
        masks[axis][positions.to(values.device)] = True
    rows = masks.pop(0, None)
    stays = torch.ones(values.shape[1:], dtype=torch.bool, device=values.device)
    for axis, each in masks.items():
        stays &= each.reshape(along(len(each), axis - 1, stays.dim()))
    found = torch.where(stays, values, values.new_zeros(())) if masks else values.clone()
    return found if rows is None else found.index_fill_(0, (~rows).nonzero()[:, 0], 0)


def shake(model: nn.Module) -> dict[str, Tensor]:
    """Random values for parameters that are zero or nearly so, behind which nothing could be seen.

    Residual branches and heads often start at zero, and a layer scale at 1e-6: outputs would agree
    whatever was cut.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * torch.randn(p.shape, generator=generator).to(p)
        for name, p in model.named_parameters()
        if p.numel() and p.dim() and is_tiny(p.detach())
    }


def is_tiny(values: Tensor) -> bool:
    """Whether no number is as large as a thousandth; most tensors tell by their first numbers."""
    if float(values.flatten()[:64].abs().max()) >= 1e-3:
        return False
    return float(values.abs().max()) < 1e-3
