# SPDX-License-Identifier: Apache-2.0
"""The search on a network that has learned: it keeps to the budget, repeats, resumes and says no."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.budget import Budget
from rarefy.compress import apply_step, step_seed
from rarefy.errors import ModelError, RecipeError, TaskError
from rarefy.export.artefact import write_program
from rarefy.forms.shadow import bake
from rarefy.recipe import Recipe
from rarefy.search import budget as room
from rarefy.search.budget import find_recipe, full_epochs, search
from rarefy.search.compress import compress
from rarefy.search.limits import costs_of, counts_of, in_integers, must_be_integer
from rarefy.search.trial import coded_bytes
from rarefy.step import Context
from rarefy.task import Task

Digits = tuple[nn.Module, Task]


def small() -> Digits:
    """A linear classifier of points; its trials cost next to nothing."""
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    batches = DataLoader(TensorDataset(x, y), 64)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), Task("points", x[:2], batches, batches, fingerprint="points")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches without exporting anything: stages are stood in for by coded weights."""

    def run_steps(model: nn.Module, task: Task, recipe: Recipe, seed: int, _: Path) -> Any:
        current, sizes = copy.deepcopy(model), []
        for number, step in enumerate((None, *recipe.steps)):
            if step is not None:
                context = Context(task, model, torch.device("cpu"), step_seed(seed, number))
                current, _seconds = apply_step(step, current, context)
            size = coded_bytes(bake(copy.deepcopy(current)))
            sizes.append(
                {"safetensors": 4 * sum(p.numel() for p in model.parameters()), "rfy": size}
            )
        return [SimpleNamespace(facts={"measurement": {"bytes": b}}) for b in sizes], current

    monkeypatch.setattr(room, "run_steps", run_steps)


def test_the_result_keeps_to_the_budget(digits: Digits, tmp_path: Path) -> None:
    model, task = digits
    before = copy.deepcopy(model.state_dict())
    budget = Budget(size=1 / 8, metric_drop=0.03)
    recipe = find_recipe(model, task, budget, cache=tmp_path, trials=4, epochs=2)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    result = compress(model, task, recipe, budget=budget, cache=tmp_path)
    assert result.met
    plain = result.measurements[0]["bytes"]["safetensors"]
    assert result.artefact.archive.stat().st_size <= plain / 8


@pytest.mark.usefixtures("light")
def test_searches_repeat_resume_and_tell_what_they_tried(tmp_path: Path) -> None:
    model, task = small()
    budget = Budget(size=1 / 4)
    alone = search(model, task, budget, trials=8, epochs=1)
    first = search(model, task, budget, trials=5, epochs=1, cache=tmp_path)
    (memory,) = tmp_path.glob("search-*.json")
    known = json.loads(memory.read_text())
    assert len(known) == 5
    memory.write_text(json.dumps({k: known[k] for k in list(known)[:3]}))
    again = search(model, task, budget, trials=5, epochs=1, cache=tmp_path)
    assert again == first
    assert [t.phase for t in alone.tried].count("quick") == 8
    assert [t for t in alone.tried if t.phase == "quick"][:3] == list(first.tried[:3])
    facts = json.loads(json.dumps(alone.facts()))
    assert facts["tried"][-1]["phase"] == "full"
    assert facts["tried"][-1]["steps"] == [str(step) for step in alone.recipe.steps]
    assert search(model, task, budget, trials=8, epochs=1) == alone


@pytest.mark.usefixtures("light")
def test_known_trials_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = small()
    budget = Budget(size=1 / 4)
    expected = search(model, task, budget, trials=4, epochs=1, cache=tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(room, "run_trial", fail)
    assert search(model, task, budget, trials=4, epochs=1, cache=tmp_path) == expected


@pytest.mark.usefixtures("light")
def test_without_a_size_the_file_becomes_small() -> None:
    model, task = small()
    found = search(model, task, Budget(metric_drop=0.05), trials=8, epochs=2)
    full = found.tried[-1]
    assert full.met
    assert full.size < 4 * sum(p.numel() for p in model.parameters()) / 2
    smallest = min(t.size for t in found.tried if t.met)
    assert full.size <= 1.1 * smallest


def test_a_budget_out_of_reach_gives_the_closest(tmp_path: Path) -> None:
    model, task = small()
    budget = Budget(size=64.0, metric_drop=0.0)  # smaller than the graph alone
    found = search(model, task, budget, trials=2, epochs=1, cache=tmp_path)
    assert not any(t.met for t in found.tried)
    full = [t for t in found.tried if t.phase == "full"]
    chosen = next(t for t in full if t.steps == tuple(map(str, found.recipe.steps)))
    assert chosen.size == min(t.size for t in full)
    result = compress(model, task, found.recipe, budget=budget, cache=tmp_path)
    assert not result.met


@pytest.mark.usefixtures("light")
def test_unlabelled_tasks_learn_from_the_original() -> None:
    model, _ = small()
    x = torch.randn(64, 16)
    batches = DataLoader(TensorDataset(x), 16)
    unlabelled = Task("bare", x[:2], batches, batches, labelled=False)
    found = search(model, unlabelled, Budget(size=1 / 3), trials=6, epochs=1)
    assert found.baseline == 1.0
    assert not any("Finetune" in step for t in found.tried for step in t.steps)


@pytest.mark.usefixtures("light")
def test_without_training_data_nothing_is_trained() -> None:
    model, task = small()
    bare = Task("bare", task.example, validation=task.validation)
    found = search(model, bare, Budget(size=1 / 3), trials=6)
    found.recipe.check(bare)
    assert full_epochs(bare) == 2
    assert not any("train" in step.needs for step in found.recipe.steps)


def test_validation_data_are_needed() -> None:
    model, task = small()
    with pytest.raises(TaskError, match=r"give Task\(validation=\.\.\.\)"):
        search(model, Task("bare", task.example, task.train), Budget(size=1 / 3))


def test_broken_networks_are_refused_first() -> None:
    model, task = small()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(ModelError, match=r"'0\.weight' holds NaN"):
        search(model, task, Budget(size=1 / 3))


@pytest.mark.parametrize("text", ["parameters=1/2", "macs=0.5", "size=1/4,macs=100"])
def test_limits_that_no_method_can_meet_are_refused(text: str) -> None:
    model, task = small()
    with pytest.raises(RecipeError) as caught:
        search(model, task, Budget.parse(text), trials=3)
    message = str(caught.value)
    name = text.split(",")[-1].split("=")[0]
    assert f"{name} " in message
    assert "is out of reach" in message
    assert "\n" not in message


def test_limits_that_hold_already_cost_nothing() -> None:
    before = {"latency": 1.0, "macs": 100.0}
    assert not must_be_integer(Budget(latency=2.0, macs=1.0), before, None)


def test_latency_is_served_by_integers_or_refused() -> None:
    before, integer = {"latency": 4.0}, {"latency": 1.0}
    assert must_be_integer(Budget(latency=0.5), before, integer)
    assert must_be_integer(Budget(latency=1.5), before, integer)
    for limit, faster in ((0.1, integer), (0.5, None)):
        with pytest.raises(
            RecipeError, match=r"latency .* is out of reach: onnxruntime needs 4 ms"
        ):
            must_be_integer(Budget(latency=limit), before, faster)


def test_energy_is_served_by_integers(digits: Digits) -> None:
    model, task = digits
    found = search(model, task, Budget(energy=0.5), trials=1, epochs=1)
    assert all(any("StaticInt8" in step for step in t.steps) for t in found.tried)
    assert found.recipe.steps[-1].key() == "static-int8"


def test_costs_of_a_network_and_of_its_integer_copy(digits: Digits, tmp_path: Path) -> None:
    model, task = digits
    integer = in_integers(model, task)
    assert integer is not None
    models = {"before": model, "integer": integer}
    programs = {name: tmp_path / f"{name}.onnx" for name in models}
    for name, each in models.items():
        write_program(each, task, programs[name])
    found = costs_of(models, programs, task, {"latency", "memory"})
    assert set(found["before"]) == {"latency", "memory", "energy"}
    assert found["integer"]["energy"] < found["before"]["energy"] / 2
    assert all(cost >= 0 for costs in found.values() for cost in costs.values())
    assert counts_of(model, task) == {"parameters": 38_282, "macs": 337_536}
    assert counts_of(integer, task)["macs"] == 337_536


def test_a_network_without_products_stays_float(digits_task: Task) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight).flatten(1)[:, :10]

    assert in_integers(Scale(), digits_task) is None
