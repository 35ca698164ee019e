# SPDX-License-Identifier: Apache-2.0
"""The mean of several teachers: of probabilities, not of logits; one teacher is plain distillation."""

import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from rarefy.compress import apply_step
from rarefy.distill.distill import Distill
from rarefy.distill.teachers import mean_logits, mean_probabilities
from rarefy.loops.fit import fit
from rarefy.loops.modes import copy_state
from rarefy.loops.optimise import Training
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import DigitsNet


def context(teacher: nn.Module, task: Task) -> Context:
    return Context(task, teacher, torch.device("cpu"), 0)


def test_probabilities_are_averaged() -> None:
    a, b = 4 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    for T in (1.0, 4.0):
        wanted = 0.5 * ((a / T).softmax(1) + (b / T).softmax(1))
        torch.testing.assert_close((mean_probabilities([a, b], T) / T).softmax(1), wanted)
    other = (mean_logits([a, b], 1.0)).softmax(1)
    assert float((other - 0.5 * (a.softmax(1) + b.softmax(1))).abs().max()) > 0.05
    torch.testing.assert_close(
        F.softmax(mean_probabilities([a], 2.0), 1), F.softmax(a, 1), rtol=1e-4, atol=1e-6
    )


def test_one_teacher_is_plain_distillation(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    found = []
    for step in (Distill(epochs=1), Distill(epochs=1, teachers=("original",), combine="logits")):
        found.append(copy_state(step.apply(copy.deepcopy(model), context(teacher, task))))
    assert all(torch.equal(t, found[1][n]) for n, t in found[0].items())


FILE = """
import torch
from rarefy.zoo.lenet import DigitsNet
from safetensors.torch import load_file

def other():
    model = DigitsNet()
    model.load_state_dict(load_file({path!r}))
    return model
"""


def test_the_mean_is_a_better_teacher_than_its_members(
    digits: tuple[nn.Module, Task], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    model, task = digits
    torch.manual_seed(5)
    other = fit(DigitsNet(), task, Training(epochs=6, rate=0.05), seed=5)
    weights = tmp_path / "other.safetensors"
    save_file(other.state_dict(), str(weights))
    (tmp_path / "teachers.py").write_text(FILE.format(path=str(weights)))
    step = Distill(teachers=("original", f"{tmp_path / 'teachers.py'}:other"), epochs=4, rate=0.05)
    faculty, _ = step.meet(model, context(copy.deepcopy(model), task))
    x, y = (torch.cat(parts) for parts in zip(*task.batches("test"), strict=True))
    answers, _, _ = faculty.teach(x)
    single = [float((a.argmax(1) == y).float().mean()) for a in answers]
    both = float((faculty.target(answers, 1.0).argmax(1) == y).float().mean())
    assert both >= sum(single) / 2
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    assert evaluate(step.apply(student, context(model, task)), task).value > 0.85


def test_the_recipe_runs(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    for step in load_recipe("kd-multi").steps:
        model, _ = apply_step(step, model, context(teacher, task))
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.02
