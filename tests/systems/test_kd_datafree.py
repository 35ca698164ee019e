# SPDX-License-Identifier: Apache-2.0
"""A student of half the width learns from recorded activations alone; no batch of data is touched."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.errors import TaskError
from rarefy.loops.features import features
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.synthesize.invert import Search, invert
from rarefy.synthesize.records import Records, moments_of, record
from rarefy.synthesize.without_data import DistillWithoutData
from rarefy.task import Task


class Gone:
    """Data that nobody may look at."""

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Any:
        raise AssertionError("data were read")


@pytest.fixture(scope="module")
def kept(digits_network: nn.Module, digits_task: Task) -> Records:
    return record(digits_network, [x for x, _ in digits_task.batches("train")])


def test_records_hold_moments_and_no_input(
    kept: Records, digits_task: Task, tmp_path: Path
) -> None:
    kept.save(tmp_path / "records.safetensors")
    size = (tmp_path / "records.safetensors").stat().st_size
    inputs = torch.cat([x for x, _ in digits_task.batches("train")])
    assert size < 0.1 * inputs.numel() * 4
    back = Records.load(tmp_path / "records.safetensors")
    assert back.layers.keys() == kept.layers.keys()
    assert torch.equal(back.covariance, kept.covariance)  # type: ignore[arg-type]
    assert (back.top, back.lowest, back.highest) == (kept.top, kept.lowest, kept.highest)
    with pytest.raises(TaskError, match="no file .*missing"):
        Records.load(tmp_path / "missing")


def test_moments_are_those_of_all_data(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    batches = [x for x, _ in task.batches("test")]
    found = record(model, batches)
    with torch.no_grad(), features(model, ["conv2", "fc2:input"]) as seen:
        model(torch.cat(batches))
    rows = seen["conv2"].transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.layers["conv2"].mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.layers["conv2"].variance, rows.var(1, correction=0), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        found.covariance, seen["fc2:input"].mT.cov(correction=0), rtol=1e-3, atol=1e-4
    )


def test_made_inputs_show_the_recorded_moments(
    digits: tuple[nn.Module, Task], kept: Records
) -> None:
    model, task = digits
    draw = torch.Generator().manual_seed(0)
    made = invert(
        model, kept, (128, *task.example.shape[1:]), Search(120, top=0.0, classes=0.0), draw
    )  # type: ignore[union-attr]
    assert float(made.min()) >= kept.lowest
    assert float(made.max()) <= kept.highest
    with torch.no_grad(), features(model, kept.layers) as seen:
        model(made)
    off = []
    for name, wanted in kept.layers.items():
        now = moments_of(seen[name])
        scale = wanted.variance.sqrt().mean()
        off.append(float((now.mean - wanted.mean).abs().mean() / scale))
        off.append(float((now.variance.sqrt() - wanted.variance.sqrt()).abs().mean() / scale))
    assert sum(off) / len(off) < 0.05


def test_half_the_network_without_data(
    digits: tuple[nn.Module, Task], kept: Records, tmp_path: Path
) -> None:
    model, task = digits
    kept.save(tmp_path / "records.safetensors")
    gone = dataclasses.replace(task, train=Gone(), validation=None, test=None, calibration=Gone())
    context = Context(gone, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
    prune, distill = load_recipe("kd-datafree").steps
    assert isinstance(distill, DistillWithoutData)
    small = prune.apply(model, context)
    pruned = evaluate(small, task).value
    with_file = dataclasses.replace(distill, records=str(tmp_path / "records.safetensors"))
    small = with_file.apply(small, context)
    assert evaluate(small, task).value >= max(0.9, pruned)


def test_batch_norms_are_records_and_a_generator_makes_inputs(digits_task: Task) -> None:
    from rarefy.loops.fit import fit
    from rarefy.loops.optimise import Training

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip
    teacher = fit(net, digits_task, Training(epochs=4, rate=0.05))
    gone = dataclasses.replace(
        digits_task, train=Gone(), validation=None, test=None, calibration=Gone()
    )
    context = Context(gone, teacher, torch.device("cpu"), 0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    step = DistillWithoutData(source="generator", examples=256, steps=150, epochs=20, rate=0.05)
    found = step.apply(student, context)
    assert context.record["source"] == "batch norms"
    assert evaluate(found, digits_task).value > 0.4  # a guess is right in one of ten


def test_nothing_is_known(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    bare = dataclasses.replace(task, train=None, validation=None, test=None, calibration=None)
    with pytest.raises(TaskError, match="give a file with records="):
        DistillWithoutData().apply(model, Context(bare, model, torch.device("cpu")))
