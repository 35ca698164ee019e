# SPDX-License-Identifier: Apache-2.0
"""A network that sees edges alone learns from one that sees the picture, through unlabelled pairs."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.errors import TaskError
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet

FILE = """
from rarefy.zoo.lenet import DigitsNet
from safetensors.torch import load_file

def seeing():
    model = DigitsNet()
    model.load_state_dict(load_file({path!r}))
    return model
"""


def edges(x: Tensor) -> Tensor:
    """How steep a picture is at every pixel."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    return (down.square() + right.square()).sqrt() - 1


def test_pairs_without_labels_beat_few_labels(
    digits: tuple[nn.Module, Task], tmp_path: Path
) -> None:
    teacher, task = digits
    save_file(teacher.state_dict(), str(tmp_path / "w.safetensors"))
    (tmp_path / "teacher.py").write_text(FILE.format(path=str(tmp_path / "w.safetensors")))
    pairs = [((edges(x), x), y) for x, y in task.batches("train")]
    held = [(edges(x), y) for x, y in task.batches("test")]
    blind = dataclasses.replace(
        task, example=edges(task.example), train=[(p, None) for p, _ in pairs], validation=None,  # type: ignore[arg-type]
        test=None, calibration=None, labelled=False,
    )  # fmt: skip
    seen = dataclasses.replace(task, example=blind.example, test=held, validation=None)
    (step,) = load_recipe("kd-crossmodal").steps
    assert isinstance(step, Distill)
    step = dataclasses.replace(step, teachers=f"{tmp_path / 'teacher.py'}:seeing", rate=0.03)
    torch.manual_seed(1)
    student = DigitsNet()
    start = copy.deepcopy(student)
    found = step.apply(student, Context(blind, start, torch.device("cpu"), 0))
    x, y = pairs[0][0][0], pairs[0][1]
    little = dataclasses.replace(seen, train=DataLoader(TensorDataset(x[:60], y[:60]), 20))
    alone = Finetune(epochs=30, rate=0.03).apply(start, Context(little, start, torch.device("cpu")))
    assert evaluate(found, seen).value > evaluate(alone, seen).value + 0.03
    assert evaluate(found, seen).value > 0.8


def test_what_is_no_pair(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    with pytest.raises(TaskError, match="paired asks for training inputs"):
        Distill(paired=True).apply(model, Context(task, model, torch.device("cpu")))
