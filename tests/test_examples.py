# SPDX-License-Identifier: Apache-2.0
"""The examples do what they say."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rarefy.cli import main
from rarefy.recipe import load_recipe
from rarefy.search.compress import compress
from rarefy.task import Task

HOME = Path(__file__).parents[1]
FILES = ("model.onnx", "model.rfy", "recipe.yaml", "measurements.json", "report.html")


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are started from the repository's folder, as the documentation says."""
    monkeypatch.chdir(HOME)


def run(*arguments: str) -> None:
    """A command of rarefy, which must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0


def stages(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a result, after a look at its files."""
    assert all((folder / name).stat().st_size > 0 for name in FILES)
    found: list[dict[str, Any]] = json.loads((folder / "measurements.json").read_text())["stages"]
    return found


def test_the_demo_shrinks_the_digits_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "digits.safetensors", tmp_path / "out"
    digits = ("zoo:digits-net", "digits")
    run("train", *digits, "--epochs", "10", "--out", str(weights))
    recipe = ("--recipe", "examples/demo.yaml", "--out", str(out))
    run("compress", *digits, "--weights", str(weights), *recipe)
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    found = stages(out)
    steps = load_recipe(HOME / "examples" / "demo.yaml").steps
    assert [s["name"] for s in found] == ["baseline", *map(str, steps), "artefact"]
    baseline, artefact = found[0], found[-1]
    assert artefact["metric"]["through"] == "onnxruntime"
    assert artefact["metric"]["value"] >= baseline["metric"]["value"] - 0.03
    assert artefact["nonzero"] < 0.12 * baseline["nonzero"]
    assert artefact["bytes"]["rfy"] <= baseline["bytes"]["safetensors"] / 14
    assert artefact["bytes"]["onnx"] <= baseline["bytes"]["onnx"] / 3
    run("measure", str(out / "model.rfy"), "digits", "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["metric"]["value"] == artefact["metric"]["value"]


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text("steps:\n  - prune-weights: {sparsity: 0.5, epochs: 1}\n  - static-int8\n")
    spec = ("examples/my_model.py:model", "examples/my_model.py:task")
    run("compress", *spec, "--recipe", str(recipe), "--out", str(out))
    baseline, *_, artefact = stages(out)
    assert baseline["metric"]["value"] > 0.85, "the example's own training"
    assert artefact["metric"]["value"] > baseline["metric"]["value"] - 0.03
    assert artefact["bytes"]["rfy"] < baseline["bytes"]["safetensors"] / 4


def test_the_waveforms_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    page = runpy.run_path(str(HOME / "examples" / "my_model.py"))
    waves = page["waves"]
    monkeypatch.setitem(waves.__globals__, "NOISE", 0.0)
    signals, kinds = waves(400, 3).tensors
    assert signals.shape == (400, 1, 128)
    assert set(kinds.tolist()) == {0, 1, 2, 3}
    for kind, jumps in ((0, False), (1, True), (2, False), (3, True)):
        of_kind = signals[kinds == kind, 0]
        peak = of_kind.abs().amax(1, keepdim=True)
        largest = ((of_kind.diff() / peak).abs() > 0.8).any(1)
        assert bool(largest.all()) is jumps, "only squares and sawtooths jump"
        assert bool(largest.any()) is jumps


def test_the_python_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = runpy.run_path(str(HOME / "examples" / "python_api.py"))["main"](tmp_path)
    assert result.met
    assert "the budget was met" in capsys.readouterr().out
    baseline, *_, artefact = stages(tmp_path)
    assert artefact["bytes"]["rfy"] <= baseline["bytes"]["safetensors"] / 8


def test_a_step_of_ones_own(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    page = runpy.run_path(str(HOME / "examples" / "new_step.py"))
    step = page["RoundWeights"](unit=0.25, layers="fc*")
    result = compress(model, task, [step])
    for name, before in model.named_parameters():
        after = dict(result.model.named_parameters())[name]
        if name in ("fc1.weight", "fc2.weight"):
            assert torch.equal((after * 4).round(), after * 4), "multiples of a quarter"
            assert float((after - before).detach().abs().max()) <= 0.125
        else:
            assert torch.equal(after, before)
