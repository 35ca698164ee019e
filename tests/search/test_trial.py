# SPDX-License-Identifier: Apache-2.0
"""Quick trials see few batches, the same ones every time, and never the test set."""

import dataclasses

import pytest
import torch
from torch import nn

from rarefy.forms.shadow import bake
from rarefy.search.space import Candidate
from rarefy.search.trial import BATCHES, HELD_BACK, coded_bytes, few, run_trial
from rarefy.task import Task

Digits = tuple[nn.Module, Task]


def test_few_batches_never_the_test_set(digits_task: Task) -> None:
    untouchable = dataclasses.replace(digits_task, test=iter(()))
    short = few(untouchable, seed=5)
    assert len(list(short.batches("train"))) == min(BATCHES, len(digits_task.batches("train")))  # type: ignore[arg-type]
    assert sum(len(x) for x, _ in short.batches("validation")) <= HELD_BACK + 200
    assert short.test is short.validation
    again = few(untouchable, seed=5)
    for one, other in zip(short.batches("train"), again.batches("train"), strict=True):
        assert torch.equal(one[0], other[0])


def test_a_trial_is_repeatable_and_leaves_the_network(digits: Digits) -> None:
    model, task = digits
    before = {name: t.clone() for name, t in model.state_dict().items()}
    short = few(task, 0)
    candidate = Candidate(0.1, "global", "shared", 4, "finetune", 0.01)
    first = run_trial(model, short, candidate, 0, overhead=1000)
    assert first == run_trial(model, short, candidate, 0, overhead=1000)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    larger = run_trial(model, short, dataclasses.replace(candidate, density=0.5), 0, overhead=1000)
    assert 1000 < first.size < larger.size < coded_bytes(bake(model))
    assert run_trial(model, short, candidate, 0, overhead=0).size == pytest.approx(
        first.size - 1000
    )
