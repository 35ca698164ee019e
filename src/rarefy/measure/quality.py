# SPDX-License-Identifier: Apache-2.0
"""How well a network, or an exported program, does its job."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rarefy.errors import TaskError
from rarefy.loops.heap import kept_blocks
from rarefy.loops.modes import device_of, evaluating
from rarefy.loops.progress import watch
from rarefy.task import Task, call, logits_of, move, split


@dataclass(frozen=True)
class Quality:
    """A metric over a set of examples.

    Attributes:
        name: of the metric.
        value: the metric.
        higher_is_better: its direction.
        examples: over which it was averaged.
        confusion: (classes, classes) counts, rows the true class; None if this is no classification.
    """

    name: str
    value: float
    higher_is_better: bool
    examples: int
    confusion: torch.Tensor | None = None


@kept_blocks()
@torch.no_grad()
def evaluate(
    model: Callable[..., Any],
    task: Task,
    role: str = "test",
    *,
    reference: Callable[..., Any] | None = None,
    label: str = "evaluate",
) -> Quality:
    """The task's metric of `model` over one role's batches.

    Args:
        model: a module (put into eval mode for the duration) or any callable on batches of inputs,
            such as an exported program.
        task: where there are no labels, `reference` gives the answers to agree with.
        role: ``"test"``, ``"validation"`` or ``"calibration"``.
        reference: the original network; needed by unlabelled tasks.
        label: of the progress bar.

    Raises:
        TaskError: no such batches, or an unlabelled task without reference.
    """
    if not task.labelled and reference is None:
        raise TaskError(
            f"task '{task.name}' has no labels: its metric needs the original to agree with"
        )
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    total, count, confusion = 0.0, 0, no_confusion(task)
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        for raw in watch(task.batches(role), label):
            inputs, targets = split(raw, task.labelled)
            inputs = move(inputs, device)
            answers = (
                move(targets, device)
                if reference is None or task.labelled
                else call(reference, inputs)
            )
            outputs = call(model, inputs)
            scores = task.metric.per_example(outputs, answers)
            total, count = total + float(scores.double().sum()), count + scores.numel()
            if confusion is not None:
                tally(confusion, logits_of(outputs).argmax(1), answers)
    if not count:
        raise TaskError(
            f"task '{task.name}' has an empty {role} set: there is nothing to measure on"
        )
    value = task.metric.finish(total / count)
    return Quality(task.metric.name, value, task.metric.higher_is_better, count, confusion)


def no_confusion(task: Task) -> torch.Tensor | None:
    """Counts of zero for a labelled classification of 200 classes at most, else None."""
    K = len(task.classes or ()) if task.labelled else 0
    return torch.zeros(K, K, dtype=torch.long) if 0 < K <= 200 else None


def tally(confusion: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor) -> None:
    """Adds one batch to the confusion counts; answers outside the named classes count for none."""
    K = len(confusion)
    inside = (predicted < K) & (targets < K)
    pairs = targets[inside].cpu() * K + predicted[inside].cpu()
    confusion += torch.bincount(pairs, minlength=K * K).view(K, K)


def accuracy_watch(
    task: Task, reference: Callable[..., Any] | None = None
) -> Callable[[nn.Module], float]:
    """A function from network to validation metric, for the training loop; full batches are awaited."""

    def judge(model: nn.Module) -> float:
        return evaluate(model, task, "validation", reference=reference).value

    return judge


def batches_of(task: Task, role: str, limit: int | None = None) -> Iterable[Any]:
    """The inputs of a role's batches, at most `limit` examples, without targets."""
    seen = 0
    for raw in task.batches(role):
        inputs, _ = split(raw, task.labelled)
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        first = first[0] if isinstance(first, tuple) else first
        yield inputs
        seen += len(first)
        if limit is not None and seen >= limit:
            return
