# SPDX-License-Identifier: Apache-2.0
"""A choice among the examples of a batch, whatever its structure."""

from torch import Tensor

from rarefy.batches import mapped
from rarefy.task import Inputs


def first_examples(inputs: Inputs, count: int) -> Inputs:
    """The beginning of a batch; a tensor without axes stays."""
    return mapped(inputs, lambda tensor: tensor[:count] if tensor.dim() else tensor)


def starting_with(inputs: Inputs, example: int) -> Inputs:
    """The same batch with one example moved to the front."""

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.dim() or example >= len(tensor):
            return tensor
        return tensor[[example, *(i for i in range(len(tensor)) if i != example)]]

    return mapped(inputs, moved)
