# SPDX-License-Identifier: Apache-2.0
"""One trial of a search: a candidate applied with little training, coded and judged on held-back data."""

import copy
import dataclasses
import itertools
from typing import Any

import torch
from torch import nn

from rarefy.compress import apply_step, step_seed
from rarefy.export.artefact import distinct
from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.search.goal import Outcome
from rarefy.search.space import Candidate
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.task import Task

BATCHES = 40  # of training data that a trial sees
HELD_BACK = 4000  # validation examples on which it is judged, at most


def few(task: Task, seed: int) -> Task:
    """The same task with few batches, which are held in memory and the same in every trial.

    Raises:
        TaskError: there are no validation data to choose by.
    """
    torch.manual_seed(seed)
    train = None if task.train is None else list(itertools.islice(task.train, BATCHES))
    validation, seen = [], 0
    for batch in task.batches("validation"):
        validation.append(batch)
        seen += len(batch[0]) if isinstance(batch, (tuple, list)) else 1
        if seen >= HELD_BACK:
            break
    calibration = list(itertools.islice(task.batches("calibration"), BATCHES))
    return dataclasses.replace(
        task, train=train, validation=validation, calibration=calibration, test=validation
    )


def coded_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a baked network, each in its smallest coding."""
    return sum(len(encode_tensor(as_array(tensor))) for tensor in distinct(model).values())


def as_array(tensor: torch.Tensor) -> Any:
    """A tensor's values for the coder; bfloat16, which numpy lacks, by its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy()
    return tensor.numpy()


def run_trial(
    original: nn.Module, task: Task, candidate: Candidate, seed: int, overhead: int
) -> Outcome:
    """Applies a candidate with one short epoch of each training.

    Args:
        original: stays untouched.
        task: see `few`.
        candidate: what to try.
        seed: of the whole search; every trial's steps start from the same one.
        overhead: bytes of the file beside the coded weights.
    """
    model = copy.deepcopy(original)
    device = next(original.parameters()).device
    for number, step in enumerate(candidate.steps(epochs=1), 1):
        context = Context(task, original, device, step_seed(seed, number))
        model, _ = apply_step(step, model, context)
    bake(model)
    quality = evaluate(model, task, "validation", reference=original, label="judge")
    return Outcome(float(coded_bytes(model) + overhead), quality.value)
