# SPDX-License-Identifier: Apache-2.0
"""Training a compressed network back into shape, on labels, on the original's answers, or on both."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import RecipeError
from rarefy.loops.losses import Imitation, imitation_loss
from rarefy.loops.modes import evaluating
from rarefy.loops.optimise import Training
from rarefy.loops.state import Watch
from rarefy.loops.train import Batch, train
from rarefy.measure.quality import accuracy_watch
from rarefy.step import Context
from rarefy.task import Task, call, logits_of

Temperature = float | Callable[[float], float]


def repair(
    model: nn.Module,
    context: Context,
    settings: Training,
    *,
    alpha: float | None = None,
    temperature: Temperature = 4.0,
    imitate: Imitation = imitation_loss,
    label: str = "repair",
    after_step: Callable[[], None] | None = None,
) -> nn.Module:
    """Trains `model` on ``alpha · imitate(outputs, teacher's outputs) + (1 - alpha) · task.loss``.

    Whatever forms the weights wear stay on: pruned weights stay zero, shared weights stay shared. The
    validation metric is taken after every epoch where the task has validation data. The curve is added
    to ``context.record["training"]``, with the temperature at the start of each epoch if the teacher
    counts. An interrupted training goes on from `context.folder`, in a folder of its own for every
    `label`, so several trainings of one step need different labels.

    Args:
        model: trained in place.
        context: task, teacher and seed; the teacher is only read.
        settings: hyper-parameters of the training.
        alpha: weight of the teacher's answers in [0, 1]; default: 0 with labels, 1 without.
        temperature: softens both answers; a number, or a function of the training's progress in [0, 1].
        imitate: ``(student, teacher, temperature) -> loss``.
        label: names the training in the progress bar, the record and the checkpoint.
        after_step: called after every optimiser step, for methods that project the weights.

    Returns:
        The same network, in eval mode; the best one by validation metric where `settings.patience` is set.

    Raises:
        RecipeError: labels are asked for and the task has none.
        TaskError: the task has no training data.
    """
    if settings.epochs < 1:
        return model.eval()
    task, seed = context.task, part_seed(context.seed, label)
    alpha, watch = teacher_share(alpha, task, label), watch_over(context, label, after_step)
    softness = temperature if callable(temperature) else lambda _: temperature
    data, labelled = task.batches("train"), task.labelled
    with evaluating(context.teacher):
        for batch in train(model, data, settings, seed=seed, labelled=labelled, watch=watch):
            now = softness(batch.progress)
            batch.minimise(loss_of(batch, task, context.teacher, alpha, now, imitate))
    if alpha > 0:
        for row in watch.history:
            row["temperature"] = softness((row["epoch"] - 1) / settings.epochs)
    remember(context.record, label, watch.history)
    return model


def loss_of(
    batch: Batch,
    task: Task,
    teacher: nn.Module,
    alpha: float,
    temperature: float,
    imitate: Imitation,
) -> Tensor:
    """The loss of one batch; the teacher runs only if its answers count."""
    outputs = call(batch.model, batch.inputs)
    if alpha == 0:
        return task.loss(outputs, batch.targets)
    with torch.no_grad():
        reference = logits_of(call(teacher, batch.inputs))
    loss = alpha * imitate(logits_of(outputs), reference, temperature)
    return loss if alpha == 1 else loss + (1 - alpha) * task.loss(outputs, batch.targets)


def teacher_share(alpha: float | None, task: Task, label: str) -> float:
    """`alpha`, or what suits the task: 0 with labels, 1 without.

    Raises:
        RecipeError: labels are asked for and there are none.
    """
    if alpha is None:
        return 0.0 if task.labelled else 1.0
    if alpha < 1 and not task.labelled:
        raise RecipeError(
            f"{label}: alpha={alpha:g} asks for labels and task '{task.name}' has none; "
            "write alpha=1 to learn from the original alone"
        )
    return alpha


def watch_over(context: Context, label: str, after_step: Callable[[], None] | None) -> Watch:
    """Validation after every epoch where that is possible, and a checkpoint folder for `label`."""
    task = context.task
    judge = accuracy_watch(task, context.teacher) if task.validation is not None else None
    place = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    return Watch(
        label=label,
        evaluate=judge,
        higher_is_better=task.metric.higher_is_better,
        folder=context.folder / place if context.folder is not None else None,
        after_step=after_step,
    )


def part_seed(seed: int, label: str) -> int:
    """A seed for one training of a step, unrelated to that of another label."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:6], "little")


def remember(record: dict[str, Any], label: str, history: list[dict[str, Any]]) -> None:
    """Adds the epochs of a training to the step's curve, counted on from those before."""
    curve: list[dict[str, Any]] = record.setdefault("training", [])
    done = len(curve)
    curve += [{**row, "epoch": done + row["epoch"], "part": label} for row in history]
