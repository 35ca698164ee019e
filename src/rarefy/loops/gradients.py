# SPDX-License-Identifier: Apache-2.0
"""Gradients of a task's loss by selected weights, batch by batch, without training."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.loops.modes import device_of, evaluating
from rarefy.select import Layer
from rarefy.task import Loss, call, move, split


def batch_gradients(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[Layer], loss: Loss
) -> Iterator[list[Tensor]]:
    """Yields for every batch dLoss/dWeight of each layer, shaped like what the optimiser would move.

    The network runs in eval mode, so dropout and batch statistics play no part, and is left unchanged.
    A layer that the loss does not depend on has a gradient of zeros.

    Args:
        model: on its device.
        batches: labelled, ``(inputs, targets)``.
        layers: of `model`.
        loss: ``(outputs, targets) -> scalar``.

    Raises:
        ModelError: a weight can't have a gradient (integer codes), or the loss is not finite.
    """
    parameters = [layer.stored for layer in layers]
    frozen = next((x for x in layers if not x.stored.is_floating_point()), None)
    if frozen is not None:
        raise ModelError(
            f"'{frozen.name}' holds integer codes, which have no gradient; score it before"
        )
    device = device_of(model)
    with evaluating(model):
        for raw in batches:
            inputs, targets = split(raw)
            with torch.enable_grad(), requiring_grad(parameters):
                value = loss(call(model, move(inputs, device)), move(targets, device))
                if not bool(torch.isfinite(value)):
                    raise ModelError(
                        f"the loss is {value.item()} on a batch: weights can't be scored"
                    )
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            yield [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, found, strict=True)
            ]


@contextmanager
def requiring_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lets gradients flow to parameters for a while, frozen ones included."""
    was = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in zip(parameters, was, strict=True):
            p.requires_grad_(required)
