# SPDX-License-Identifier: Apache-2.0
"""A transformer at half its depth, made of the teacher's own layers, taught attention, states and answers.

What the largest logits alone still say is in tests/distill/test_answers.py.
"""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from tests.systems.reader import Reader, trained_reader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.distill.taught import Told
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


@pytest.fixture(scope="module")
def reader(digits_task: Task) -> nn.Module:
    return trained_reader(digits_task)


def context(teacher: nn.Module, task: Task, seed: int = 0) -> Context:
    return Context(task, teacher, torch.device("cpu"), seed)


def test_layers_are_the_teachers_own(reader: nn.Module, digits_task: Task) -> None:
    halve, distill = load_recipe("kd-plm").steps
    small = halve.apply(copy.deepcopy(reader), context(reader, digits_task))
    assert [type(m) for m in small.layers][1::2] == [nn.Identity] * 2  # type: ignore[union-attr, arg-type]
    theirs = reader.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in small.state_dict().items())
    assert isinstance(distill, Distill)
    faculty, taught = distill.meet(small, context(reader, digits_task))
    assert taught.pairs["hidden-states"] == [[("layers.1", "layers.0"), ("layers.3", "layers.2")]]
    assert taught.pairs["embeddings"] == [[("layers.0:input", "layers.0:input")]]
    x, _ = next(iter(digits_task.batches("test")))
    references, seen, attentions = faculty.teach(x[:8])
    assert [len(calls) for calls in attentions] == [4]
    outputs, loss = taught(x[:8], told=Told(references, seen, attentions))
    assert torch.equal(outputs, small(x[:8]))
    assert bool(torch.isfinite(loss))


def test_an_equal_student_has_nothing_to_learn(reader: nn.Module, digits_task: Task) -> None:
    names = ("embeddings", "hidden-states", "attention-maps", "value-relations")
    step = Distill(loss=names)
    faculty, taught = step.meet(copy.deepcopy(reader), context(reader, digits_task))
    x, _ = next(iter(digits_task.batches("test")))
    _, loss = taught(x[:8], told=Told(*faculty.teach(x[:8])))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)


def test_a_small_student_gains(reader: nn.Module, digits_task: Task) -> None:
    """As many steps on unlabelled data with a teacher as on a hundred labels without one."""
    torch.manual_seed(7)
    x, y = (torch.cat(parts) for parts in zip(*digits_task.batches("train"), strict=True))
    labels = DataLoader(TensorDataset(x[:100], y[:100]), 20, shuffle=True)
    few = dataclasses.replace(digits_task, train=labels, validation=None)
    blind = dataclasses.replace(
        digits_task, train=list(x.split(64)), validation=None, test=None, labelled=False
    )
    halve, distill = load_recipe("kd-plm").steps
    small = halve.apply(copy.deepcopy(reader), context(reader, few))
    alone = Finetune(epochs=17, rate=0.003, optimiser="adamw")
    taught = distill.apply(copy.deepcopy(small), context(reader, blind))
    untaught = alone.apply(small, context(reader, few))
    assert evaluate(taught, few).value >= evaluate(untaught, few).value + 0.01


def test_largest_logits_are_cached(reader: nn.Module, digits_task: Task, tmp_path: Path) -> None:
    batches = [x for x, _ in digits_task.batches("test")]
    blind = dataclasses.replace(
        digits_task, train=batches, validation=None, test=None, labelled=False
    )
    step = Distill(epochs=2, cache=str(tmp_path), largest=3, rate=0.01)
    torch.manual_seed(0)
    step.apply(Reader(1), context(reader, blind))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 300 * (16 + 3 * 8 + 4) + 1000
    broken = copy.deepcopy(reader)
    calls = []
    broken.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    step.apply(Reader(1), context(broken, blind))
    assert len(calls) == 1  # the example alone; every answer was found on disk
