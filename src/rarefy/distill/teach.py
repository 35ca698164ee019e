# SPDX-License-Identifier: Apache-2.0
"""The one training loop of distillation: answers, lessons and labels, each with its share of the loss."""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.distill.shrinking import Shrinking
from rarefy.distill.taught import Taught, Told
from rarefy.distill.teachers import Faculty
from rarefy.loops.losses import Imitation
from rarefy.loops.modes import evaluating
from rarefy.loops.optimise import Training
from rarefy.loops.repair import part_seed, remember, watch_over
from rarefy.loops.train import Batch, train
from rarefy.step import Context
from rarefy.task import Inputs, Task, call, logits_of


@dataclass(frozen=True)
class Plan:
    """What is learnt from whom.

    Attributes:
        faculty: the teachers.
        alpha: share of the answers in the loss, in [0, 1]; labels have the rest.
        answers: how answers are compared, each with a factor.
        temperature: softens both answers, by the training's progress in [0, 1].
        paired: whether inputs come in pairs, the student's first.
        worth: how much an example has to teach, of (student's, target) outputs and temperature, (B,); for a
            shrinking set.
    """

    faculty: Faculty
    alpha: float
    answers: list[tuple[float, Imitation]]
    temperature: Callable[[float], float]
    paired: bool = False
    worth: Callable[[Tensor, Tensor, float], Tensor] | None = field(default=None, repr=False)


def views(inputs: Any, paired: bool) -> tuple[Inputs, Inputs]:
    """The student's and the teachers' view of a batch."""
    return (inputs[0], inputs[1]) if paired else (inputs, inputs)


def teach(
    taught: Taught, context: Context, settings: Training, plan: Plan, batches: Iterable[Any]
) -> nn.Module:
    """Trains a student; its lessons learn with it, its teachers never change.

    The curve is added to ``context.record["training"]``.

    Args:
        taught: the student with its lessons; trained in place.
        context: task and seed.
        settings: hyper-parameters of the training.
        plan: what is learnt from whom.
        batches: the training data.

    Returns:
        The student, in eval mode.
    """
    task, label = context.task, "distill"
    if isinstance(batches, Shrinking):  # which examples are left is in no checkpoint
        context = dataclasses.replace(context, folder=None)
    watch = watch_over(context, label, None)
    seed = part_seed(context.seed, label)
    model: nn.Module = taught if taught.weights else taught.student
    with ExitStack() as stack:
        for teacher in plan.faculty.networks:
            stack.enter_context(evaluating(teacher))
        for answers in plan.faculty.answers or []:
            stack.callback(answers.save)
        for batch in train(
            model, batches, settings, seed=seed, labelled=task.labelled, watch=watch
        ):
            loss, outputs, target = loss_of(batch, task, taught, plan)
            batch.minimise(loss)
            if plan.worth is not None and isinstance(batches, Shrinking):
                with torch.no_grad():
                    batches.judge(plan.worth(outputs, target, plan.temperature(batch.progress)))
    for row in watch.history:
        row["temperature"] = plan.temperature((row["epoch"] - 1) / settings.epochs)
        if isinstance(batches, Shrinking):
            row["examples"] = batches.size(row["epoch"] - 1)
            row["loss"] *= batches.steps(0) / batches.steps(row["epoch"] - 1)
    remember(context.record, label, watch.history)
    return taught.student.eval()


def loss_of(batch: Batch, task: Task, taught: Taught, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one batch, the student's outputs and what they should have been."""
    mine, theirs = views(batch.inputs, plan.paired)
    now = plan.temperature(batch.progress)
    parts, target = [], torch.empty(0)
    if taught.weights or (plan.alpha > 0 and plan.answers):
        references, seen, attentions = plan.faculty.teach(theirs)
        target = plan.faculty.target(references, now)
    if taught.weights:
        labels = batch.targets if is_classes(batch.targets) else None
        told = Told(references, seen, attentions, labels)
        outputs, extra = call(lambda *a, **k: batch.model(*a, told=told, **k), mine)
        parts.append(extra)
    else:
        outputs = call(batch.model, mine)
    answers = logits_of(outputs)
    if plan.alpha > 0 and plan.answers:
        parts += [plan.alpha * w * imitate(answers, target, now) for w, imitate in plan.answers]
    if plan.alpha < 1:
        parts.append((1 - plan.alpha) * task.loss(outputs, batch.targets))
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0], answers, target


def is_classes(targets: Any) -> bool:
    """Whether targets are class indices, one an example."""
    return isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
