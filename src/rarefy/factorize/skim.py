# SPDX-License-Identifier: Apache-2.0
"""Runs a network for its shapes alone: costly layers answer zeros of the right shape."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rarefy.loops.modes import evaluating
from rarefy.task import Inputs, call, first_example

CONVOLUTIONS: tuple[Any, ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def skim(model: nn.Module, example: Inputs, begin: Callable[[], None] = lambda: None) -> None:
    """Runs a network once on one example, computing little of it where the network bears that.

    A network that stumbles over zeros is run as it is.

    Args:
        model: in any mode; it stays as it is.
        example: on the model's device.
        begin: called before every attempt, so that what hooks saw of an earlier one can be dropped.
    """
    one = first_example(example)
    with evaluating(model), torch.no_grad():
        try:
            begin()
            with answering_zeros(model):
                call(model, one)
            return
        except Exception:
            # whatever the network makes of zeros: what it does with real values counts
            begin()
        call(model, one)


@contextmanager
def answering_zeros(model: nn.Module) -> Iterator[None]:
    """Lets plain linear layers and convolutions answer without computing, for a while."""
    modules = [
        m
        for m in model.modules()
        if type(m) in (nn.Linear, *CONVOLUTIONS) and "forward" not in m.__dict__
    ]
    for module in modules:
        module.forward = partial(zeros_from, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def zeros_from(module: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Zeros shaped like what a layer gives; layers that are told more than their input compute it."""
    if rest or named:
        result: Tensor = type(module).forward(module, x, *rest, **named)
        return result
    if isinstance(module, nn.Linear):
        return x.new_zeros(*x.shape[:-1], module.out_features)
    nd = len(module.kernel_size)
    lead = x.shape[:-nd]
    space = [reach(module, axis, x.shape[axis - nd]) for axis in range(nd)]
    return x.new_zeros(*lead[:-1], module.out_channels, *space)


def reach(module: _ConvNd, axis: int, size: int) -> int:
    """The size of a convolution's output along an axis."""
    wide, stride = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1, module.stride[axis]
    if isinstance(module.padding, str):
        return size if module.padding == "same" else (size - wide) // stride + 1
    pad = 2 * int(module.padding[axis])
    if isinstance(module, _ConvTransposeNd):
        return (size - 1) * stride - pad + wide + int(module.output_padding[axis])
    return (size + pad - wide) // stride + 1
