# SPDX-License-Identifier: Apache-2.0
"""Training a network from scratch on a task."""

from torch import nn

from rarefy.loops.optimise import Training
from rarefy.loops.state import Watch
from rarefy.loops.train import train
from rarefy.task import Task, call


def fit(
    model: nn.Module,
    task: Task,
    settings: Training,
    *,
    seed: int = 0,
    watch: Watch | None = None,
) -> nn.Module:
    """Trains `model` on the task's loss; the same seed gives the same weights on the same machine.

    Args:
        model: trained in place.
        task: must be labelled, or have a loss that needs no targets.
        settings: hyper-parameters.
        seed: of data order, augmentation, dropout.
        watch: progress, evaluation, checkpoint.

    Returns:
        The same network, in eval mode.
    """
    batches = task.batches("train")
    for batch in train(model, batches, settings, seed=seed, labelled=task.labelled, watch=watch):
        batch.minimise(task.loss(call(batch.model, batch.inputs), batch.targets))
    return model
