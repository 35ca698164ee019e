# SPDX-License-Identifier: Apache-2.0
"""Batches, metrics and what a task refuses."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import TaskError
from rarefy.task import (
    Metric,
    Task,
    accuracy,
    agreement,
    call,
    correct,
    cross_entropy,
    logits_of,
    move,
    same_answer,
    split,
    tensors_of,
)


def loader(count: int = 8) -> DataLoader[Any]:
    data = torch.arange(3.0 * count).view(count, 3)
    return DataLoader(TensorDataset(data, torch.arange(count) % 2), batch_size=4)


def test_metric_drop_follows_its_direction() -> None:
    perplexity = Metric("perplexity", correct, higher_is_better=False, finish=math.exp)
    assert accuracy.drop(0.9, 0.8) == pytest.approx(0.1)
    assert perplexity.drop(10.0, 12.0) == 2.0
    assert accuracy.drop(0.8, 0.9) < 0


@pytest.mark.parametrize("wrap", [
    lambda t: t,
    lambda t: SimpleNamespace(logits=t),
    lambda t: {"first": t, "second": None},
    lambda t: (t, torch.zeros(1)),
    lambda t: [(t,)],
])  # fmt: skip
def test_logits_are_found_in_any_output(wrap: Any) -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert logits_of(wrap(logits)) is logits
    assert correct(wrap(logits), torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert float(cross_entropy(wrap(logits), torch.tensor([1, 1]))) == pytest.approx(expected)


def test_correct_averages_over_places() -> None:
    outputs = torch.zeros(1, 2, 4)
    outputs[0, 1, :3] = 1  # class 1 at three of four places
    assert correct(outputs, torch.ones(1, 4, dtype=torch.long)).tolist() == [0.75]


def test_agreement_of_classes_and_of_features() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[5.0, 4.0], [2.0, 1.0]])
    assert same_answer(a, b).tolist() == [1.0, 0.0]
    feature = torch.tensor([[[3.0, 4.0]]])
    assert float(same_answer(feature, -2 * feature)) == pytest.approx(-1.0)


def test_test_set_defaults_to_validation_and_unlabelled_tasks_to_agreement() -> None:
    batches = loader()
    task = Task("toy", torch.zeros(1, 3), validation=batches, labelled=False)
    assert task.test is batches
    assert task.metric is agreement


def test_calibration_falls_back_to_train_then_validation() -> None:
    train, validation = loader(), loader()
    assert Task("a", torch.zeros(1, 3), train, validation).batches("calibration") is train
    only = Task("a", torch.zeros(1, 3), validation=validation)
    assert only.batches("calibration") is validation


def test_missing_batches_name_the_field() -> None:
    with pytest.raises(TaskError, match=r"task 'toy' has no train data: give Task\(train=\.\.\.\)"):
        Task("toy", torch.zeros(1, 3)).batches("train")


def test_empty_loader_is_refused_at_once() -> None:
    with pytest.raises(TaskError, match="task 'toy' has no train batches: its loader is empty"):
        Task("toy", torch.zeros(1, 3), train=loader(0))


def test_identity_changes_with_data_and_name() -> None:
    x = torch.zeros(1, 3)
    tasks = [
        Task("a", x),
        Task("b", x),
        Task("a", x, fingerprint="1"),
        Task("a", x + 1),
        Task("a", x, labelled=False),
    ]
    assert len({task.identity() for task in tasks}) == len(tasks)
    assert Task("a", x.clone()).identity() == tasks[0].identity()


def test_split() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert split((x, y)) == (x, y)
    assert split([[x, x], y]) == ((x, x), y)
    assert split((x, y), labelled=False) == (x, None)
    assert split([x], labelled=False) == ((x,), None)
    assert split({"ids": x}, labelled=False) == ({"ids": x}, None)
    with pytest.raises(TaskError, match="a batch of type Tensor carries no labels"):
        split(x)


def test_call_spells_every_kind_of_input() -> None:
    def network(a: torch.Tensor, b: torch.Tensor | None = None) -> float:
        return float(a.sum()) + (0.0 if b is None else 10 * float(b.sum()))

    x = torch.ones(2)
    assert call(network, x) == 2
    assert call(network, (x, x)) == 22
    assert call(network, {"b": x, "a": x * 2}) == 24


def test_move_keeps_structure() -> None:
    held = {"a": (torch.zeros(1), 3), "b": [torch.ones(2)]}
    moved = move(held, torch.device("meta"))
    assert [t.device.type for t in tensors_of(moved)] == ["meta", "meta"]
    assert moved["a"][1] == 3
    assert isinstance(moved["b"], list)
    assert [t.shape[0] for t in tensors_of(held)] == [1, 2]


@pytest.mark.parametrize("judge", [correct, cross_entropy])
def test_labels_without_an_output_are_told(judge: Any) -> None:
    with pytest.raises(TaskError, match="label 2 does not fit a network with 2 outputs"):
        judge(torch.zeros(3, 2), torch.tensor([0, 2, 1]))
    with pytest.raises(TaskError, match="labels are of type list"):
        judge(torch.zeros(2, 2), ["a", "b"])
    assert judge(torch.zeros(3, 2, 4), torch.ones(3, 4).long()).isfinite().all()


def test_an_example_without_tensors_is_refused() -> None:
    with pytest.raises(TaskError, match=r"'toy' has no tensor in its example but NoneType"):
        Task("toy", None, train=loader())  # type: ignore[arg-type]
