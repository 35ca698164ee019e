# SPDX-License-Identifier: Apache-2.0
"""Which coupled channels mind being cut: figures against zeroed networks, resume, page, recipe."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rarefy.measure.quality import evaluate
from rarefy.prune.prune_channels import PruneChannels
from rarefy.recipe import Recipe
from rarefy.report import group_sensitivity as room
from rarefy.report.fragility import bearable_sparsity
from rarefy.report.group_sensitivity import group_sensitivity
from rarefy.report.schema import Metric, Probe
from rarefy.report.sensitivity import write_sensitivity
from rarefy.task import Task

from .reader import Reader

Digits = tuple[nn.Module, Task]


def without(model: nn.Module, task: Task, layer: str, number: int) -> float:
    """The metric with the rows and biases of the smallest units of a layer at zero."""
    model = copy.deepcopy(model)
    module = model.get_submodule(layer)
    norms = module.weight.detach().flatten(1).norm(dim=1)  # type: ignore[union-attr, operator]
    gone = norms.argsort()[:number]
    with torch.no_grad():
        module.weight[gone] = 0  # type: ignore[index, operator]
        module.bias[gone] = 0  # type: ignore[index, operator]
    return evaluate(model, task, "validation").value


def test_figures_are_those_of_zeroed_units(digits: Digits) -> None:
    model, task = digits
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rows = group_sensitivity(model, task, sparsities=(0.01, 0.5, 0.75))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    found = {(row["layer"], row["sparsity"]): row for row in rows}
    sizes = {"conv1": 16, "conv2": 32, "fc1": 64}
    assert list(found) == [(n, s) for n in sizes for s in (0.01, 0.5, 0.75)]
    for (layer, sparsity), row in found.items():
        assert row["units"] == sizes[layer]
        assert row["cut"] == round(sparsity * sizes[layer])
        expected = without(model, task, layer, row["cut"])
        assert row["metric"] == pytest.approx(expected)
        assert row["pattern"] == layer
    baseline = evaluate(model, task, "validation").value
    assert found["conv1", 0.01]["metric"] == baseline, "nothing goes, nothing changes"
    assert found["conv2", 0.75]["metric"] < baseline


def test_an_interrupted_run_goes_on_and_the_page_ends_in_a_recipe(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = digits
    real, measured = room.evaluate, []

    def stopped(*arguments: object, **more: object) -> object:
        measured.append(arguments)
        if len(measured) == 4:  # one group, and half of the next
            raise KeyboardInterrupt
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_sensitivity(model, task, tmp_path, sparsities=(0.25, 0.5))
    table = tmp_path / "sensitivity.json"
    assert [r["layer"] for r in json.loads(table.read_text())["groups"]] == ["conv1", "conv1"]
    measured[:] = [()] * 10
    page = write_sensitivity(model, task, tmp_path, sparsities=(0.25, 0.5))
    assert len(measured) == 10 + 2 * 2, "the two groups that were left"
    rows = json.loads(table.read_text())["groups"]
    assert rows == group_sensitivity(model, task, sparsities=(0.25, 0.5))
    read = Reader(page.read_text(encoding="utf-8"))
    assert {"groups", "chart-groups", "channels"} <= read.ids
    drawn = sorted(tuple(trace["y"]) for trace in read.figure(1)["data"])
    curves = [
        [100 * r["metric"] for r in rows if r["layer"] == n] for n in ("conv1", "conv2", "fc1")
    ]
    assert drawn == [pytest.approx(values) for values in sorted(map(tuple, curves))]
    text = [t for t in read.text if t.lstrip().startswith("steps:")][-1]
    prune = Recipe.from_yaml(text).steps[0]
    assert isinstance(prune, PruneChannels)
    assert prune.sparsities is not None
    assert set(prune.sparsities) <= {"conv1", "conv2", "fc1"}


def test_what_is_borne_grows_with_the_tolerance(digits: Digits) -> None:
    model, task = digits
    rows = group_sensitivity(model, task, sparsities=(0.25, 0.5, 0.75))
    metric = Metric(name="accuracy", value=evaluate(model, task, "validation").value)
    for name in ("conv1", "conv2", "fc1"):
        probes = [Probe.model_validate(r) for r in rows if r["layer"] == name]
        borne = [bearable_sparsity(probes, metric, t) for t in (0.0, 0.01, 0.05, 0.2, 1.0)]
        assert borne == sorted(borne)
        assert borne[-1] == 0.75


def test_a_network_without_free_channels_has_no_groups(digits: Digits, tmp_path: Path) -> None:
    _, task = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    page = write_sensitivity(model, task, tmp_path, sparsities=(0.5,))
    assert json.loads((tmp_path / "sensitivity.json").read_text())["groups"] == []
    assert "groups" not in Reader(page.read_text(encoding="utf-8")).ids
