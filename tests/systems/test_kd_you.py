# SPDX-License-Identifier: Apache-2.0
"""Answers and triplets from several teachers; votes and triplets by hand stand in test_relations."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.distill.distill import Distill
from rarefy.distill.lessons import agreed_layers
from rarefy.distill.relations import triplet_loss
from rarefy.distill.taught import Told
from rarefy.loops.features import features
from rarefy.loops.modes import copy_state
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task

DEEPER = """
import torch
from torch import nn

def deeper():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)
    )
"""


def context(teacher: nn.Module, task: Task) -> Context:
    return Context(task, teacher, torch.device("cpu"), 0)


def test_the_layer_that_agrees_most_is_asked() -> None:
    def draw(seed: int) -> Tensor:
        return torch.randn(8, 5, generator=torch.Generator().manual_seed(seed))

    shared = draw(0)
    chosen = agreed_layers([[draw(1), 3 * shared, draw(2)], [shared + 7, draw(3)]])
    assert torch.equal(chosen[0], 3 * shared)
    assert torch.equal(chosen[1], shared + 7)
    assert torch.equal(agreed_layers([[draw(1), draw(2)]])[0], draw(2))


def test_only_the_student_learns_from_teachers_of_any_depth(
    digits: tuple[nn.Module, Task], tmp_path: Path
) -> None:
    model, task = digits
    (tmp_path / "deeper.py").write_text(DEEPER)
    step = Distill(teachers=("original", f"{tmp_path / 'deeper.py'}:deeper"), loss="triplets")
    faculty, taught = step.meet(copy.deepcopy(model), context(model, task))
    before = [copy_state(network) for network in faculty.networks]
    x, _ = next(iter(task.batches("train")))
    told = Told(*faculty.teach(x))
    _, loss = taught(x, told=told)
    loss.backward()
    assert float(loss.detach()) > 0
    assert any(p.grad is not None for p in taught.student.parameters())
    for network, state in zip(faculty.networks, before, strict=True):
        assert all(p.grad is None for p in network.parameters())
        assert all(torch.equal(t, state[n]) for n, t in copy_state(network).items())


def order_gap(student: nn.Module, teacher: nn.Module, task: Task) -> float:
    x, _ = next(iter(task.batches("test")))
    names = ["fc2:input"]
    with torch.no_grad(), features(student, names) as mine, features(teacher, names) as theirs:
        student(x[:60]), teacher(x[:60])
    return float(triplet_loss(mine[names[0]], [theirs[names[0]]]))


def test_the_recipe_keeps_the_order(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    teacher = copy.deepcopy(model).eval()
    gaps = []
    for step in load_recipe("kd-you").steps:
        model, _ = apply_step(step, model, context(teacher, task))
        gaps.append(order_gap(model, teacher, task))
    assert gaps[2] < gaps[1]
    assert evaluate(model, task).value >= evaluate(teacher, task).value - 0.03
