# SPDX-License-Identifier: Apache-2.0
"""The main job end to end: stages, evidence, files, resume."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rarefy
from rarefy.budget import Budget
from rarefy.compress import Result, check, run_recipe, step_seed
from rarefy.distill.finetune import Finetune
from rarefy.errors import ModelError, RecipeError, TaskError
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.prune.prune_weights import PruneWeights
from rarefy.quantize.fixed_point import FixedPoint
from rarefy.quantize.share_weights import ShareWeights
from rarefy.recipe import Recipe
from rarefy.search.compress import as_recipe, compress
from rarefy.step import Context, Step
from rarefy.store.rfy import read
from rarefy.task import Task

Digits = tuple[nn.Module, Task]
STEPS = (
    PruneWeights(sparsity=0.8),
    Finetune(epochs=1, rate=0.01),
    ShareWeights(bits=5, epochs=1),
)


@pytest.fixture(scope="module")
def result(digits_network: nn.Module, digits_task: Task) -> Iterator[Result]:
    """One compression that several tests look at."""
    before = {k: t.clone() for k, t in digits_network.state_dict().items()}
    digits_network.train()
    found = compress(digits_network, digits_task, STEPS, budget=Budget(size=1 / 8, metric_drop=0.1))
    assert digits_network.training  # as it was handed in
    digits_network.eval()
    assert all(torch.equal(t, before[k]) for k, t in digits_network.state_dict().items())
    yield found
    found.workspace.cleanup()


def test_every_step_is_measured(result: Result) -> None:
    names = [stage["name"] for stage in result.measurements]
    assert names == ["baseline", *map(str, STEPS), "artefact"]
    nonzero = [stage["nonzero"] for stage in result.measurements]
    assert nonzero[0] > 0.99 * 38_282
    assert all(n <= 0.21 * 38_282 for n in nonzero[1:])
    assert {stage["parameters"] for stage in result.measurements} == {38_282}
    assert {stage["macs"] for stage in result.measurements} == {337_536}
    sizes = [stage["bytes"]["rfy"] for stage in result.measurements]
    assert sizes[0] > sizes[1] > sizes[3]
    assert all(s["latency_ms"]["median"] > 0 for s in result.measurements)
    through = [stage["metric"]["through"] for stage in result.measurements]
    assert through == ["pytorch"] * 4 + ["onnxruntime"]
    assert all(stage["metric"]["examples"] == 300 for stage in result.measurements)


def test_the_model_computes_what_the_file_computes(result: Result, digits_task: Task) -> None:
    assert type(result.model.fc1) is nn.Linear  # baked
    assert len(result.model.fc1.weight.unique()) <= 32
    program = OnnxRuntime(result.artefact.program)
    for inputs, _ in digits_task.batches("test"):
        with torch.no_grad():
            assert torch.allclose(program(inputs), result.model(inputs), atol=1e-4)
    parity = result.document["parity"]
    assert parity["passed"]
    assert parity["max_relative"] < parity["tolerance"]


def test_the_folder_holds_everything(result: Result, tmp_path: Path) -> None:
    out = result.save(tmp_path / "out")
    files = {path.name for path in out.iterdir()}
    assert files == {
        "model.onnx", "model.rfy", "recipe.yaml", "measurements.json", "report.html",
    }  # fmt: skip
    assert Recipe.from_yaml((out / "recipe.yaml").read_text()).steps == STEPS
    document = json.loads((out / "measurements.json").read_text())
    assert document == result.document
    assert document["stages"][-1]["bytes"]["rfy"] == (out / "model.rfy").stat().st_size
    assert document["stages"][-1]["bytes"]["onnx"] == (out / "model.onnx").stat().st_size
    with read(out / "model.rfy") as archive:
        assert archive.info["recipe"] == (out / "recipe.yaml").read_text()
        assert archive.info["stages"][-1]["metric"][0] == "accuracy"


def test_the_budget_is_judged_on_the_artefact(result: Result) -> None:
    verdict = result.document["budget"]
    assert verdict["met"]
    assert result.met
    size, drop = verdict["limits"]
    assert size["name"] == "size"
    assert size["limit"] == result.measurements[0]["bytes"]["safetensors"] / 8
    assert size["found"] == result.artefact.archive.stat().st_size
    metrics = [stage["metric"]["value"] for stage in result.measurements]
    assert drop["found"] == pytest.approx(metrics[0] - metrics[-1])


def test_layers_and_classes_are_told(result: Result) -> None:
    rows = {row["name"]: row for row in result.document["layers"]}
    assert list(rows) == ["conv1", "conv2", "fc1", "fc2"]
    assert rows["fc1"]["bytes_before"] == 4 * (512 * 64 + 64)
    assert rows["fc1"]["distinct"] <= 32
    total = sum(row["bytes_after"] for row in rows.values())
    assert total < result.artefact.archive.stat().st_size
    classes = result.document["classes"]
    assert sum(map(sum, classes["confusion_after"])) == 300
    right = sum(classes["confusion_after"][i][i] for i in range(10))
    assert right / 300 == pytest.approx(result.measurements[-1]["metric"]["value"])
    curve = result.document["training"]
    assert [len(epochs) for epochs in curve.values()] == [1, 1]


@dataclass(frozen=True)
class Interrupts(Step):
    """Halves the weights; fails as long as it is told to."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        if FAILING:
            raise KeyboardInterrupt
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        return model


FAILING: list[int] = []


def linear() -> Digits:
    """A task and network whose stages cost next to nothing but their export."""
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    batches = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    return model, Task("line", x[:2], batches, batches, fingerprint="line")


def test_an_interrupted_run_goes_on_after_the_last_finished_step(tmp_path: Path) -> None:
    model, task = linear()
    recipe = Recipe((Finetune(epochs=2), Interrupts(), FixedPoint(bits=4)))
    whole = run_recipe(model, task, recipe, cache=tmp_path / "whole")
    FAILING.append(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(model, task, recipe, cache=tmp_path / "cut")
    finally:
        FAILING.clear()
    finished = {
        p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*/stage.json")
    }
    assert len(finished) == 2
    again = run_recipe(model, task, recipe, cache=tmp_path / "cut")
    stages = {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*/stage.json")}
    assert len(stages) == 4
    assert all(stages[name] == time for name, time in finished.items())  # not run again
    assert again.artefact.archive.read_bytes() == whole.artefact.archive.read_bytes()
    assert again.artefact.program.read_bytes() == whole.artefact.program.read_bytes()
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_the_empty_recipe_exports_the_network_as_it_is() -> None:
    model, task = linear()
    found = run_recipe(model, task, Recipe(()))
    assert [stage["name"] for stage in found.measurements] == ["baseline", "artefact"]
    x = torch.randn(3, 6)
    assert torch.equal(found.model(x), model(x))
    assert found.model is not model


def test_seeds_of_steps_are_unrelated() -> None:
    seeds = {step_seed(seed, number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_spellings_of_a_recipe(tmp_path: Path) -> None:
    recipe = Recipe(STEPS)
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    assert as_recipe(recipe) is recipe
    assert as_recipe(list(STEPS)).steps == STEPS
    assert as_recipe(path).steps == as_recipe(str(path)).steps == STEPS
    assert as_recipe("int8").name == "int8"


def test_the_face_of_the_package() -> None:
    assert rarefy.compress is compress
    assert rarefy.Recipe is Recipe
    assert all(getattr(rarefy, name) is not None for name in rarefy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        rarefy.compres  # noqa: B018


class Fails(nn.Module):
    """Refuses or spoils its input."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(6, 2), error

    def forward(self, x: torch.Tensor) -> Any:
        if self.error is not None:
            raise self.error
        return self.layer(x) / torch.zeros(())


class Masked(nn.Module):
    """Scores of which some are hidden by a buffer of minus infinity."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("mask", torch.tensor([0.0, hidden, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.softmax(x + self.mask, dim=-1))


def test_a_mask_may_hide_by_minus_infinity_alone() -> None:
    x = torch.randn(4, 3)
    task = Task("rows", x, calibration=[x], validation=[x], labelled=False)
    result = run_recipe(Masked(-math.inf).eval(), task, Recipe((ShareWeights(bits=4, epochs=0),)))
    assert result.measurements[-1]["metric"]["value"] == 1.0
    for wrong in (math.nan, math.inf):
        with pytest.raises(ModelError, match="'mask' holds NaN or infinity"):
            run_recipe(Masked(wrong).eval(), task, Recipe((ShareWeights(bits=4, epochs=0),)))


def test_what_can_not_work_is_refused_first(tmp_path: Path) -> None:
    model, task = linear()
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[2].bias[0] = float("inf")  # type: ignore[index]
    cases: list[tuple[nn.Module, Task, type[Exception], str]] = [
        (broken, task, ModelError, r"'2\.bias' holds NaN or infinity"),
        (nn.ReLU(), task, ModelError, "ReLU has no parameters"),
        (
            Fails(ValueError("odd\nsecond line")),
            task,
            ModelError,
            "fails on the example .*: ValueError: odd second line$",
        ),
        (Fails(None), task, ModelError, "gives NaN or infinity on the example"),
        (
            nn.Linear(5, 2),
            task,
            ModelError,
            "fails on the example of task 'line': RuntimeError: mat1 and mat2",
        ),
        (model, Task("bare", task.example), RecipeError, "needs training data"),
    ]
    for network, data, error, message in cases:
        with pytest.raises(error, match=message):
            run_recipe(network, data, Recipe((Finetune(),)), cache=tmp_path / "stages")
        assert not (tmp_path / "stages").exists()
    with pytest.raises(RecipeError, match="compress needs a recipe, or a budget"):
        compress(model, task)
    with pytest.raises(TaskError, match="test"):
        run_recipe(model, Task("bare", task.example), Recipe(()))
    check(model.train(), task, Recipe(()))
    assert model.training


@dataclass(frozen=True)
class Spoils(Step):
    """Leaves NaN behind."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        with torch.no_grad():
            model[2].weight.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
        return model


def test_a_step_that_leaves_nan_is_named() -> None:
    model, task = linear()
    with pytest.raises(ModelError, match=r"spoils left NaN or infinity in '2\.weight'"):
        run_recipe(model, task, Recipe((Spoils(),)))
