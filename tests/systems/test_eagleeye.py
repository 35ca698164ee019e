# SPDX-License-Identifier: Apache-2.0
"""EagleEye: accuracy with norms measured anew tells what fine-tuning will give; frozen norms tell less."""

import copy
import dataclasses

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from rarefy.compress import apply_step
from rarefy.loops.fit import fit
from rarefy.loops.norms import reestimate_norms
from rarefy.loops.optimise import Training
from rarefy.measure.counts import macs
from rarefy.measure.quality import evaluate
from rarefy.prune.eagle_eye import EagleEye, candidate_network
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task, split
from rarefy.zoo.vgg import SmallVGG


@pytest.fixture(scope="module")
def vgg(digits_task: Task) -> nn.Module:
    torch.manual_seed(0)
    return fit(SmallVGG(1, 10, 6), digits_task, Training(epochs=5, rate=0.1))


def test_adapted_norms_foretell_the_order_after_finetuning(
    vgg: nn.Module, digits_task: Task
) -> None:
    judged = dataclasses.replace(digits_task, calibration=digits_task.train)
    found: dict[str, list[float]] = {"frozen": [], "adapted": [], "finetuned": []}
    ctx = Context(judged, vgg, torch.device("cpu"))
    search, generator = EagleEye(sparsity=0.5), torch.Generator().manual_seed(3)
    space = search.space(copy.deepcopy(vgg), judged.example, ctx)
    for seed in range(8):
        _, cuts, _ = search.draw(space, generator, None)
        small = candidate_network(vgg, cuts, judged.example, judged, 0)
        found["frozen"].append(evaluate(small, judged, "test").value)
        reestimate_norms(small, judged, 512)
        found["adapted"].append(evaluate(small, judged, "test").value)
        fit(small, judged, Training(epochs=1, rate=0.02), seed=seed)
        found["finetuned"].append(evaluate(small, judged, "test").value)
    adapted = spearmanr(found["adapted"], found["finetuned"]).statistic
    frozen = spearmanr(found["frozen"], found["finetuned"]).statistic
    assert adapted > 0.6
    assert adapted > frozen


def test_a_cumulative_mean_equals_the_statistics_of_a_full_pass(digits_task: Task) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    batches = [split(b)[0] for b in digits_task.batches("validation")]
    size = min(len(x) for x in batches)
    even = [x[:size] for x in batches]
    task = Task("even", even[0], calibration=even, labelled=False)
    reestimate_norms(model, task, size * len(even))
    everything = torch.cat(even)
    assert torch.allclose(model[0].running_mean, everything.mean((0, 2, 3)), atol=1e-5)  # type: ignore[arg-type]
    expected = torch.stack([x.var((0, 2, 3)) for x in even]).mean(0)
    assert torch.allclose(model[0].running_var, expected, rtol=1e-5)  # type: ignore[arg-type]


def test_the_recipe_halves_the_operations(vgg: nn.Module, digits_task: Task) -> None:
    model = copy.deepcopy(vgg)
    teacher, before = copy.deepcopy(model).eval(), evaluate(model, digits_task).value
    search, finetune = load_recipe("eagleeye").steps
    assert isinstance(search, EagleEye)
    small = copy.deepcopy(model)
    for number, step in enumerate((dataclasses.replace(search, candidates=3), finetune)):
        ctx = Context(digits_task, teacher, torch.device("cpu"), number)
        small, _ = apply_step(step, small, ctx)
    assert macs(small, digits_task.example) <= 0.5 * macs(model, digits_task.example)
    assert evaluate(small, digits_task).value > before - 0.12
