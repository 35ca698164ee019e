# SPDX-License-Identifier: Apache-2.0
"""Training a network from scratch on a task, with images that grow while it learns."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.loops.optimise import Training
from rarefy.loops.state import Watch
from rarefy.loops.train import train
from rarefy.task import Inputs, Task, call

GROWN = 0.65  # share of the training after which images have their full size


def shrink(inputs: Inputs, progress: float, smallest: float) -> Inputs:
    """Images (B, C, H, W) scaled by a factor that grows from `smallest` to 1 while `progress` reaches 0.65.

    Sides are rounded to multiples of four. Small images cost less and teach coarse features first
    (progressive resizing; Karras et al. 2017, arXiv 1710.10196, for generators; Tan, Le 2021,
    arXiv 2104.00298, for classifiers).
    """
    if smallest >= 1 or progress >= GROWN or not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    scale = smallest + (1 - smallest) * progress / GROWN
    size = [max(4, round(side * scale / 4) * 4) for side in inputs.shape[2:]]
    resized = F.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)


def fit(
    model: nn.Module,
    task: Task,
    settings: Training,
    *,
    seed: int = 0,
    smallest: float = 1.0,
    watch: Watch | None = None,
) -> nn.Module:
    """Trains `model` on the task's loss; the same seed gives the same weights on the same machine.

    Args:
        model: trained in place.
        task: must be labelled, or have a loss that needs no targets.
        settings: hyper-parameters.
        seed: of data order, augmentation, dropout.
        smallest: share of the image size at the start; 1 trains at full size throughout.
        watch: progress, evaluation, checkpoint.

    Returns:
        The same network, in eval mode.
    """
    batches = task.batches("train")
    for batch in train(model, batches, settings, seed=seed, labelled=task.labelled, watch=watch):
        inputs = shrink(batch.inputs, batch.progress, smallest)
        batch.minimise(task.loss(call(batch.model, inputs), batch.targets))
    return model
