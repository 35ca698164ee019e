# SPDX-License-Identifier: Apache-2.0
"""Kernels of convolutions with their channels last while a network trains: the same numbers, sooner."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rarefy.task import Inputs, call


@contextmanager
def channels_last(model: nn.Module) -> Iterator[Callable[[Inputs], None]]:
    """Gives a function that lays out the kernels once it has seen inputs; afterwards they lie as before.

    The layout runs on into the activations, in which a network may look for rows that lie together
    (``x.view(b, -1)``). One pass over the inputs tells; a network that fails in it keeps its layout.
    """
    kernels = kernels_of(model)
    waiting = bool(kernels)

    def settle(inputs: Inputs) -> None:
        nonlocal waiting
        if not waiting:
            return
        waiting = False
        lay(kernels, torch.channels_last)
        try:
            look(model, inputs)
        except RuntimeError:  # if it is not the layout, the training's own pass raises it again
            lay(kernels, torch.contiguous_format)

    try:
        yield settle
    finally:
        lay(kernels, torch.contiguous_format)


def kernels_of(model: nn.Module) -> list[nn.Parameter]:
    """The kernels of all two-dimensional convolutions, as they are stored."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    kernels = {id(p): p for m in convolutions for p in m.parameters() if p.dim() == 4}
    return list(kernels.values())


def lay(kernels: list[nn.Parameter], layout: torch.memory_format) -> None:
    """Stores kernels in a layout; the parameters stay the same objects."""
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=layout)


@torch.no_grad()
def look(model: nn.Module, inputs: Inputs) -> None:
    """Runs the network as it is in training, and leaves buffers and random numbers as they were."""
    before: dict[str, Tensor] = {name: b.clone() for name, b in model.named_buffers()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            call(model, inputs)
    finally:
        for name, buffer in model.named_buffers():
            if name in before and before[name].shape == buffer.shape:
                buffer.copy_(before[name])
