# SPDX-License-Identifier: Apache-2.0
"""A residual network of eight layers learns from one of twenty-six: a fifth of the parameters."""

import dataclasses
from statistics import mean

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import parameters
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.models import load_model
from rarefy.zoo.resnet import CifarResNet


def test_a_fifth_of_the_parameters() -> None:
    teacher, student = CifarResNet(26), load_model("zoo:resnet8")
    assert 0.20 <= parameters(student) / parameters(teacher) <= 0.22


def test_the_student_gains_over_three_seeds(digits_task: Task) -> None:
    torch.manual_seed(7)
    x, y = (torch.cat(parts) for parts in zip(*digits_task.batches("train"), strict=True))
    x = x.expand(-1, 3, -1, -1)
    test = [(a.expand(-1, 3, -1, -1), b) for a, b in digits_task.batches("test")]
    train = DataLoader(TensorDataset(x, y), 64, shuffle=True)
    task = dataclasses.replace(
        digits_task, example=x[:2], train=train, validation=None, test=test, calibration=None
    )
    torch.manual_seed(0)
    teacher = fit(CifarResNet(26, width=8), task, Training(epochs=3, rate=0.1))
    # labels are few, pictures are not
    few = dataclasses.replace(task, train=DataLoader(TensorDataset(x[:60], y[:60]), 20))
    blind = dataclasses.replace(task, train=list(x[:960].split(64)), test=None, labelled=False)
    (step,) = load_recipe("kd-resnet18").steps
    assert isinstance(step, Distill)
    taught = dataclasses.replace(step, epochs=2)
    alone = Finetune(epochs=10, rate=0.1, weight_decay=5e-4)
    ours, theirs = [], []
    for seed in range(3):
        device = torch.device("cpu")
        torch.manual_seed(seed)
        student: nn.Module = taught.apply(teacher, Context(blind, teacher, device, seed))
        assert parameters(student) == parameters(load_model("zoo:resnet8"))
        ours.append(evaluate(student, task).value)
        torch.manual_seed(seed)
        untaught = alone.apply(load_model("zoo:resnet8"), Context(few, teacher, device, seed))
        theirs.append(evaluate(untaught, task).value)
    assert mean(ours) > mean(theirs)
