# SPDX-License-Identifier: Apache-2.0
"""Smaller copies of tensors: the entries that stay along some axes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = 2**20
"""Entries that are copied on the way at a time; more would leave the processor's cache."""


def sliced(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """The entries of a tensor at the positions that stay along some axes; itself if all do."""
    found = {axis: stays.to(tensor.device) for axis, stays in kept.items()}
    if {0, 1} <= found.keys():
        tensor = rows_and_columns(tensor, found.pop(0), found.pop(1))
    for axis, stays in found.items():
        tensor = tensor.index_select(axis, stays)
    return tensor


def rows_and_columns(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Some rows and some columns, a block of rows after the other: no copy of all columns is made."""
    found = tensor.new_empty(len(rows), len(columns), *tensor.shape[2:])
    many = max(1, BLOCK // max(1, math.prod(tensor.shape[1:])))
    for block, place in zip(rows.split(many), found.split(many), strict=True):
        torch.index_select(tensor.index_select(0, block), 1, columns, out=place)
    return found
