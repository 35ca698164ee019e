# SPDX-License-Identifier: Apache-2.0
"""A student of two experts, each of which knows half of the digits, and of no label."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.teachers import NEVER, ambiguity, placed, surest
from rarefy.errors import ModelError, RecipeError
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet

FILE = """
from rarefy.zoo.lenet import DigitsNet
from safetensors.torch import load_file

def low():
    model = DigitsNet(5)
    model.load_state_dict(load_file({low!r}))
    return model

def high():
    model = DigitsNet(5)
    model.load_state_dict(load_file({high!r}))
    return model
"""
HALVES = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


def test_the_least_ambiguous_teacher_is_chosen() -> None:
    a = torch.tensor([[5.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    b = torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.0, 9.0]])
    assert (ambiguity(a, 1.0) < ambiguity(b, 1.0)).tolist() == [True, False]
    chosen = surest([a, b], 1.0).softmax(1)
    torch.testing.assert_close(chosen[0], a[0].softmax(0))
    torch.testing.assert_close(chosen[1], b[1].softmax(0))
    whole = placed(a, (0, 2, 5), 6)
    assert whole[:, [0, 2, 5]].tolist() == a.tolist()
    assert (whole[:, [1, 3, 4]] == NEVER).all()


@pytest.fixture(scope="module")
def experts(digits_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    batches = list(digits_task.batches("train"))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    paths = {}
    for name, classes in (("low", HALVES[0]), ("high", HALVES[1])):
        own = (y >= classes[0]) & (y <= classes[-1])
        data = TensorDataset(x[own], y[own] - classes[0])
        task = Task(name, x[:2], train=DataLoader(data, 64, shuffle=True))
        torch.manual_seed(0)
        model = fit(DigitsNet(5), task, Training(epochs=8, rate=0.05))
        paths[name] = str(folder / f"{name}.safetensors")
        save_file(model.state_dict(), paths[name])
    (folder / "experts.py").write_text(FILE.format(**paths))
    return folder / "experts.py"


class Unread:
    """Labels that nobody may look at."""

    def to(self, *_: Any, **__: Any) -> "Unread":
        return self

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a label was read: {name}")


def test_the_student_knows_what_no_teacher_knows(experts: Path, digits_task: Task) -> None:
    inputs = [(x, Unread()) for x, _ in digits_task.batches("train")]
    blind = dataclasses.replace(digits_task, train=inputs, validation=None)
    (step,) = load_recipe("kd-selective").steps
    assert isinstance(step, Distill)
    teachers = (f"{experts}:low", f"{experts}:high")
    step = dataclasses.replace(step, teachers=teachers, classes=HALVES, rate=0.05, epochs=12)
    torch.manual_seed(3)
    student = DigitsNet()
    model = step.apply(student, Context(blind, copy.deepcopy(student), torch.device("cpu")))
    # each expert is right on its own half at best
    y = torch.cat([t for _, t in digits_task.batches("test")])
    best = max(float((y < 5).float().mean()), float((y >= 5).float().mean()))
    assert evaluate(model, digits_task).value > best + 0.15


def test_classes_that_do_not_fit(experts: Path, digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, model, torch.device("cpu"))
    one = f"{experts}:low"
    with pytest.raises(ModelError, match=r"teacher 1 gives outputs of shape \(2, 5\)"):
        Distill(teachers=one).apply(copy.deepcopy(model), context)
    with pytest.raises(RecipeError, match="do not fit teacher 1"):
        Distill(teachers=one, classes=((1, 2),)).apply(copy.deepcopy(model), context)
    with pytest.raises(RecipeError, match="names 2 lists of classes for 1 teachers"):
        Distill(teachers=one, classes=HALVES).apply(copy.deepcopy(model), context)
    with pytest.raises(RecipeError, match="compared as soft-targets"):
        Distill(teachers=one, classes=HALVES, loss="logits")
