# SPDX-License-Identifier: Apache-2.0
"""Constants of an ONNX file that are no tensors in the network: sizes, and what operators need as numbers."""

from typing import Any

from torch import Tensor

from rarefy.zoo.onnx_sizes import MOST
from rarefy.zoo.onnx_source import Work

NUMBERS = {"Clip": (1, 2), "Pad": (2,), "Resize": (2,)}  # inputs that can't be tensors when traced


def as_size(value: Any) -> Any:
    """Few integers as plain numbers."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype.itemsize == 1:
        return value
    if value.dim() > 1 or value.numel() > MOST:
        return value
    return as_number(value)


def as_number(value: Any) -> Any:
    """A tensor as a plain number, or as a tuple of them."""
    if not isinstance(value, Tensor):
        return value
    return tuple(value.tolist()) if value.dim() else value.item()


def numbered(work: Work, constants: dict[str, Any]) -> Work:
    """The node with numbers where it needs them; they get names of their own among the constants.

    Another node may read the same constant as a tensor.
    """
    inputs = list(work.inputs)
    for place in NUMBERS.get(work.operator, ()):
        if place < len(inputs) and inputs[place] in constants:
            name = f"{inputs[place]} as a number"
            constants[name] = as_number(constants[inputs[place]])
            inputs[place] = name
    return work.reading(tuple(inputs))
