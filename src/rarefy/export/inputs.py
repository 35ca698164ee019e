# SPDX-License-Identifier: Apache-2.0
"""The same change to every tensor of a network's inputs, whatever their structure."""

from collections.abc import Callable, Mapping

from torch import Tensor

from rarefy.task import Inputs


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """A tensor, a tuple or a mapping of tensors with `change` applied to each."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(change(value) for value in inputs)


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
