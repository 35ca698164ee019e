# SPDX-License-Identifier: Apache-2.0
"""Training on the task's loss and a price of the weights, which may change as training goes on."""

from collections.abc import Callable

from torch import Tensor, nn

from rarefy.loops.losses import imitation_loss
from rarefy.loops.modes import evaluating
from rarefy.loops.optimise import Training
from rarefy.loops.repair import loss_of, part_seed, remember, teacher_share, watch_over
from rarefy.loops.train import train
from rarefy.step import Context

Price = Callable[[float], Tensor]
"""From the training's progress in [0, 1] to what the weights cost now, a scalar with a gradient."""


def train_priced(
    model: nn.Module,
    context: Context,
    settings: Training,
    price: Price,
    *,
    alpha: float | None = None,
    label: str,
) -> nn.Module:
    """Trains on ``alpha · imitation + (1 - alpha) · task.loss + price(progress)``.

    Args:
        model: trained in place, with whatever forms its weights wear.
        context: task, teacher and seed; the curve is added to ``context.record["training"]``.
        settings: hyper-parameters of the training.
        price: added to the loss of every batch.
        alpha: share of the original's answers; default: 0 with labels, 1 without.
        label: names the training in the progress bar, the record and the checkpoint.

    Returns:
        The same network, in eval mode.
    """
    task, teacher = context.task, context.teacher
    share, watch = teacher_share(alpha, task, label), watch_over(context, label, None)
    seed = part_seed(context.seed, label)
    with evaluating(teacher):
        for batch in train(
            model,
            task.batches("train"),
            settings,
            seed=seed,
            labelled=task.labelled,
            watch=watch,
        ):
            loss = loss_of(batch, task, teacher, share, 4.0, imitation_loss)
            batch.minimise(loss + price(batch.progress).to(loss))
    remember(context.record, label, watch.history)
    return model.eval()
