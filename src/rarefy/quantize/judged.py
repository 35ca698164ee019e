# SPDX-License-Identifier: Apache-2.0
"""What a network loses against the one that it was made from."""

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from rarefy.measure.quality import batches_of, evaluate
from rarefy.step import Context


def loss_against(
    model: nn.Module, context: Context, examples: int | None
) -> Callable[[nn.Module], float]:
    """What other networks lose against this one, on validation labels or by their answers.

    Args:
        model: copied as it is now.
        context: with the task.
        examples: of the calibration data that are answered where there are no labels or no validation data;
            then the loss is the share of them that get another answer.
    """
    before, task = copy.deepcopy(model).eval(), context.task
    if task.labelled and task.validation is not None:
        reached = evaluate(before, task, "validation", label="judge").value
        return lambda found: task.metric.drop(
            reached, evaluate(found, task, "validation", label="judge").value
        )
    batches = [(x, None) for x in batches_of(task, "calibration", examples)]
    answers = replace(task, labelled=False, calibration=batches)
    return lambda found: (
        1 - evaluate(found, answers, "calibration", reference=before, label="judge").value
    )
