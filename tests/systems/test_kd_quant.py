# SPDX-License-Identifier: Apache-2.0
"""Row kd-quant: the float original teaches its quantised self, without labels, and stays untouched."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def context(teacher: nn.Module, task: Task, seed: int = 0) -> Context:
    return Context(task, teacher, torch.device("cpu"), seed)


def forbidden(outputs: object, targets: object) -> Tensor:
    raise AssertionError("the task's loss was asked for")


def test_no_label_is_used_and_the_teacher_stays_as_it_was(
    digits: tuple[nn.Module, Task],
) -> None:
    teacher, task = digits
    torch.manual_seed(0)
    x = [inputs for inputs, _ in task.train]  # type: ignore[union-attr]
    blind = replace(
        task, train=x, calibration=x, validation=None, test=None, labelled=False, loss=forbidden
    )
    before = copy_state(teacher)
    (step,) = load_recipe("kd-quant").steps
    model = step.apply(copy.deepcopy(teacher), context(teacher, blind))
    assert all(torch.equal(t, before[n]) for n, t in copy_state(teacher).items())
    assert not teacher.training
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.02


def test_with_few_labels_the_teacher_helps_over_three_seeds(
    digits: tuple[nn.Module, Task],
) -> None:
    teacher, task = digits
    torch.manual_seed(0)
    little = replace(task, train=list(task.train)[:3], validation=None)  # type: ignore[arg-type]

    def mean_accuracy(alpha: float) -> float:
        step = QuantizationAwareTraining(
            bits=2, activation_bits=2, epochs=5, rate=0.02, alpha=alpha
        )
        found = [
            step.apply(copy.deepcopy(teacher), context(teacher, little, seed)) for seed in range(3)
        ]
        return sum(evaluate(m, task).value for m in found) / 3

    assert mean_accuracy(0.9) >= mean_accuracy(0.0)
