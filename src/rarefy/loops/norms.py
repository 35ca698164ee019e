# SPDX-License-Identifier: Apache-2.0
"""Batch norms measured anew on calibration data, without labels and without touching a weight."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rarefy.errors import TaskError
from rarefy.loops.modes import device_of
from rarefy.loops.progress import watch
from rarefy.measure.quality import batches_of
from rarefy.task import Task, call, move, tensors_of


def reestimate_norms(model: nn.Module, task: Task, examples: int = 512) -> int:
    """Replaces the running statistics of batch norms by the average over all batches, each counting the same.

    Args:
        model: changed in place; in eval mode afterwards.
        task: with calibration data.
        examples: how many of them are used at most.

    Returns:
        How many batch norms there are; without any nothing is run.

    Raises:
        TaskError: a batch of one example, which has no spread.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    was = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average over all batches
    model.eval()
    device = device_of(model)
    try:
        for norm in norms:
            norm.train()
        with torch.no_grad():
            for inputs in watch(batches_of(task, "calibration", examples), "batch norms"):
                if len(tensors_of(inputs)[0]) < 2:
                    raise TaskError(
                        f"task '{task.name}' has a calibration batch of one example; "
                        "batch statistics need two or more: drop the last batch or take larger ones"
                    )
                call(model, move(inputs, device))
    finally:
        for norm, momentum in zip(norms, was, strict=True):
            norm.momentum = momentum
        model.eval()
    return len(norms)
