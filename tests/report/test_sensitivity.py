# SPDX-License-Identifier: Apache-2.0
"""Which layers mind being pruned: figures against a measurement of our own, page, resume, refusals."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.cli import main
from rarefy.errors import RecipeError, TaskError
from rarefy.recipe import Recipe
from rarefy.report import sensitivity as room
from rarefy.report.sensitivity import SPARSITIES, sensitivity, write_sensitivity
from rarefy.task import Task

from .reader import Reader

Digits = tuple[nn.Module, Task]


def pruned_accuracy(model: nn.Module, task: Task, layer: str, sparsity: float) -> float:
    """Share of right answers on validation data with the smallest weights of one layer at zero."""
    model = copy.deepcopy(model).eval()
    weight = model.get_submodule(layer).weight.data  # type: ignore[union-attr]
    order = weight.abs().flatten().argsort()
    weight.view(-1)[order[: round(sparsity * weight.numel())]] = 0  # type: ignore[operator, index]
    right = total = 0
    with torch.no_grad():
        for inputs, labels in task.batches("validation"):
            right += int((model(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def test_figures_equal_a_measurement_of_our_own(digits: Digits) -> None:
    model, task = digits
    before = {name: t.clone() for name, t in model.state_dict().items()}
    rows = sensitivity(model, task, sparsities=(0.97, 0.5))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    found = {(row["layer"], row["sparsity"]): row for row in rows}
    layers = ("conv1", "conv2", "fc1", "fc2")
    assert list(found) == [(layer, s) for layer in layers for s in (0.5, 0.97)]
    for (layer, sparsity), row in found.items():
        assert row["metric"] == pytest.approx(pruned_accuracy(model, task, layer, sparsity))
        assert row["parameters"] == before[f"{layer}.weight"].numel()
    assert found["fc1", 0.97]["metric"] < found["fc1", 0.5]["metric"], "the probe is a real one"


@pytest.fixture(scope="module")
def analysis(
    digits_network: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A folder that the command line wrote, and the file of weights."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("analysis")
    weights = folder / "w.safetensors"
    save_file(digits_network.state_dict(), str(weights))
    analyse(weights, folder / "out")
    return folder / "out", weights


def analyse(weights: Path, out: Path) -> None:
    """The command, which must succeed."""
    network = ("sensitivity", "zoo:digits-net", "digits", "--weights", str(weights))
    with pytest.raises(SystemExit) as stop:
        main([*network, "--out", str(out)])
    assert stop.value.code == 0


def test_the_command_writes_table_and_page(
    analysis: tuple[Path, Path], digits_network: nn.Module, digits_task: Task
) -> None:
    out, _ = analysis
    assert sorted(p.name for p in out.iterdir()) == ["sensitivity.html", "sensitivity.json"]
    document = json.loads((out / "sensitivity.json").read_text())
    rows = {(row["layer"], row["sparsity"]): row["metric"] for row in document["rows"]}
    assert len(rows) == 4 * len(SPARSITIES)
    for sparsity in SPARSITIES:
        expected = pruned_accuracy(digits_network, digits_task, "conv2", sparsity)
        assert rows["conv2", sparsity] == pytest.approx(expected)
    page = Reader((out / "sensitivity.html").read_text(encoding="utf-8"))
    assert "chart-sensitivity" in page.ids
    traces = page.figure(0)["data"]
    assert all(trace["x"] == pytest.approx([100 * s for s in SPARSITIES]) for trace in traces)
    drawn = sorted(tuple(round(y, 6) for y in trace["y"]) for trace in traces)
    layers = ("conv1", "conv2", "fc1", "fc2")
    assert drawn == sorted(tuple(round(100 * rows[n, s], 6) for s in SPARSITIES) for n in layers)


def test_the_page_ends_in_a_recipe_that_runs(
    analysis: tuple[Path, Path], digits_network: nn.Module
) -> None:
    page = Reader((analysis[0] / "sensitivity.html").read_text(encoding="utf-8"))
    text, channels = [t for t in page.text if t.lstrip().startswith("steps:")]
    assert Recipe.from_yaml(channels).steps[0].key() == "prune-channels"
    prune = Recipe.from_yaml(text).steps[0]
    wanted = yaml.safe_load(text)["steps"][0]["prune-weights"]["sparsities"]
    assert prune.settings() == {"sparsities": wanted}
    assert wanted.keys() <= dict(digits_network.named_modules()).keys()
    assert set(wanted.values()) <= set(SPARSITIES)


def test_a_second_run_probes_nothing(
    analysis: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, weights = analysis
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(room, "evaluate", fail)
    analyse(weights, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupted_run_goes_on(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = digits
    measured: list[Any] = []
    real = room.evaluate

    def evaluate(*arguments: Any, **more: Any) -> Any:
        if len(measured) == 4:  # the baseline, one layer, and half of the next
            raise KeyboardInterrupt
        measured.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(room, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        write_sensitivity(model, task, tmp_path, sparsities=(0.5, 0.9))
    table = json.loads((tmp_path / "sensitivity.json").read_text())
    assert [row["layer"] for row in table["rows"]] == ["conv1", "conv1"]
    measured.clear()
    measured += [None] * 5
    write_sensitivity(model, task, tmp_path, sparsities=(0.5, 0.9))
    assert len(measured) == 5 + 3 * 2, "the three layers that were left"
    rows = json.loads((tmp_path / "sensitivity.json").read_text())["rows"]
    assert rows == sensitivity(model, task, sparsities=(0.5, 0.9))
    measured.clear()
    measured += [None] * 5
    with torch.no_grad():
        model.fc2.bias.add_(1e-3)  # type: ignore[union-attr, operator]
    write_sensitivity(model, task, tmp_path, sparsities=(0.5, 0.9))
    assert len(measured) == 5 + 1 + 4 * 2, "another network is another analysis"


def test_unlabelled_tasks_compare_with_the_network_itself(digits: Digits) -> None:
    model, task = digits
    inputs = torch.cat([x for x, _ in task.batches("validation")])
    batches = DataLoader(TensorDataset(inputs), 100)
    bare = Task("bare", inputs[:2], validation=batches, labelled=False)
    (row,) = [r for r in sensitivity(model, bare, sparsities=(0.9,)) if r["layer"] == "conv1"]
    spoilt = copy.deepcopy(model)
    weight = spoilt.conv1.weight.data  # type: ignore[union-attr]
    order = weight.abs().flatten().argsort()
    weight.view(-1)[order[: round(0.9 * weight.numel())]] = 0  # type: ignore[operator, index]
    with torch.no_grad():
        same = (model(inputs).argmax(1) == spoilt(inputs).argmax(1)).float().mean()
    assert row["metric"] == pytest.approx(float(same))


def test_what_can_not_be_analysed(digits: Digits, tmp_path: Path) -> None:
    model, task = digits
    for wrong in ((), (0.0,), (0.5, 1.0)):
        with pytest.raises(RecipeError, match="each must be above 0 and below 1"):
            write_sensitivity(model, task, tmp_path, sparsities=wrong)
    with pytest.raises(TaskError, match=r"give Task\(validation=\.\.\.\)"):
        write_sensitivity(model, Task("bare", task.example, task.train), tmp_path)
    norms = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    with pytest.raises(RecipeError, match="Sequential holds no weight of two or more axes"):
        write_sensitivity(norms, task, tmp_path)
    assert not list(tmp_path.iterdir())
