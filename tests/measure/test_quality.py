# SPDX-License-Identifier: Apache-2.0
"""A metric is the mean over examples, whatever the batches, and looking at it changes nothing."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import TaskError
from rarefy.measure.quality import accuracy_watch, batches_of, evaluate, tally
from rarefy.task import Metric, Task, logits_of

LOGITS = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(23) % 4


def task(batch: int, **fields: Any) -> Task:
    """Examples whose inputs are the logits already."""
    batches = DataLoader(TensorDataset(LOGITS, TARGETS), batch_size=batch)
    settings = {"validation": batches, "calibration": batches, "classes": tuple("abcd")} | fields
    return Task("logits", example=LOGITS[:1], **settings)


@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 30))
def test_the_value_does_not_depend_on_the_batches(batch: int) -> None:
    found = evaluate(nn.Identity(), task(batch))
    assert found.value == pytest.approx(float((LOGITS.argmax(1) == TARGETS).double().mean()))
    assert (found.name, found.examples, found.higher_is_better) == ("accuracy", 23, True)
    assert found.confusion is not None
    assert found.confusion.sum() == 23
    assert found.confusion.diagonal().sum() == round(found.value * 23)
    assert found.confusion.sum(1).tolist() == TARGETS.bincount().tolist()


def test_a_metric_is_finished_once_over_all_examples() -> None:
    def surprise(outputs: Any, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_of(outputs), targets, reduction="none")

    metric = Metric("perplexity", surprise, higher_is_better=False, finish=math.exp)
    found = evaluate(nn.Identity(), task(7, metric=metric))
    assert found.value == pytest.approx(math.exp(surprise(LOGITS, TARGETS).mean()), rel=1e-5)
    assert not found.higher_is_better


def test_a_network_is_evaluated_in_eval_mode_and_left_as_it_was() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return x

    net = Watcher().train()
    accuracy = accuracy_watch(task(5))(net)
    assert set(modes) == {(False, False)}
    assert net.training
    assert accuracy == evaluate(lambda x: x, task(5)).value


def test_without_labels_the_original_gives_the_answers() -> None:
    unlabelled = task(6, labelled=False, validation=DataLoader(LOGITS, batch_size=6))  # type: ignore[arg-type]
    assert evaluate(nn.Identity(), unlabelled, reference=lambda x: x).value == 1.0
    upside_down = evaluate(nn.Identity(), unlabelled, reference=lambda x: -x)
    assert upside_down.name == "agreement"
    assert upside_down.value == 0.0
    assert upside_down.confusion is None
    with pytest.raises(TaskError, match="needs the original"):
        evaluate(nn.Identity(), unlabelled)


def test_missing_and_empty_roles_are_refused() -> None:
    with pytest.raises(TaskError, match="no train data"):
        evaluate(nn.Identity(), task(5), "train")
    with pytest.raises(TaskError, match="empty validation set"):
        evaluate(nn.Identity(), task(5, validation=iter(())), "validation")


def test_answers_outside_the_named_classes_count_for_none() -> None:
    counts = torch.zeros(2, 2, dtype=torch.long)
    tally(counts, torch.tensor([0, 1, 5, 1]), torch.tensor([0, 0, 1, 7]))
    assert counts.tolist() == [[1, 1], [0, 0]]


def test_batches_of_a_role_end_at_the_limit() -> None:
    found = list(batches_of(task(5), "calibration", limit=12))
    assert [len(x) for x in found] == [5, 5, 5]
    assert torch.equal(torch.cat(found), LOGITS[:15])
    assert sum(len(x) for x in batches_of(task(5), "calibration")) == 23
