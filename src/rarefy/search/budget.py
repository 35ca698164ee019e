# SPDX-License-Identifier: Apache-2.0
"""A search for the recipe that meets a budget with the best metric.

Many candidates are tried with little training, by a tree-structured Parzen estimator with constraints
(Bergstra et al.: Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; Akiba et al.: Optuna, 2019,
arXiv 1907.10902). The best of them are then trained in full, one after the other, until one meets the
budget. Everything is chosen on validation data; test data are never looked at.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rarefy.budget import Budget
from rarefy.compress import check, run_steps
from rarefy.export.artefact import write_program
from rarefy.forms.shadow import bake
from rarefy.loops.progress import bar, silent
from rarefy.loops.train import steps_of
from rarefy.measure.quality import evaluate
from rarefy.recipe import Recipe
from rarefy.search.goal import Goal, Outcome
from rarefy.search.limits import costs_of, counts_of, in_integers, limited, must_be_integer
from rarefy.search.memory import Memory
from rarefy.search.space import STORAGES, Candidate, Space, first_guesses, suggest
from rarefy.search.study import constrained_study, run_study, silence
from rarefy.search.trial import coded_bytes, few, run_trial
from rarefy.store.stages import model_key
from rarefy.task import Task

if TYPE_CHECKING:
    from optuna.trial import Trial

TRIALS = 32
FULL_STEPS = 4000  # optimiser steps of the final repair, within the limits below
EPOCHS = (2, 40)
ROUNDS = 4
NOTES = 512  # bytes of recipe and measurements in the final file
FINALISTS = 4


@dataclass(frozen=True)
class Tried:
    """One candidate and what came of it.

    Attributes:
        phase: ``"quick"`` (little training) or ``"full"``.
        steps: as they stand in a recipe.
        size: bytes of the stored file.
        metric: on the validation data.
        met: whether size and metric are within the budget.
    """

    phase: str
    steps: tuple[str, ...]
    size: float
    metric: float
    met: bool


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        recipe: the best that was found; whether it meets the budget is measured afterwards.
        tried: every candidate, in order.
        baseline: validation metric of the network as it came.
    """

    recipe: Recipe
    tried: tuple[Tried, ...]
    baseline: float

    def facts(self) -> dict[str, Any]:
        """As it stands in measurements.json."""
        return {"baseline": self.baseline, "tried": [dataclasses.asdict(t) for t in self.tried]}


def find_recipe(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    seed: int = 0,
    cache: Path | None = None,
    trials: int = TRIALS,
    epochs: int | None = None,
) -> Recipe:
    """The recipe of `search`."""
    found = search(model, task, budget, seed=seed, cache=cache, trials=trials, epochs=epochs)
    return found.recipe


def search(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    seed: int = 0,
    cache: Path | None = None,
    trials: int = TRIALS,
    epochs: int | None = None,
) -> Search:
    """Finds a recipe whose result keeps within `budget` with the best metric.

    With a limit on the size the metric is made as good as possible; with one on the loss of the metric
    alone the file is made as small as possible. If nothing meets the budget the closest is returned.

    Args:
        model: the trained network; it stays untouched.
        task: needs validation data; without training data nothing is repaired.
        budget: the limits.
        seed: of everything; the same seed finds the same recipe, unless times are limited.
        cache: folder of finished trials and stages, from which an interrupted search goes on and which
            `run_recipe` uses again; None keeps nothing.
        trials: candidates tried with little training.
        epochs: of the final repair; default: about 4,000 steps, 2 to 40 epochs.

    Raises:
        RecipeError: a limit that no method at hand can meet.
        TaskError: no validation data.
    """
    check(model, task, Recipe(()))
    short = few(task, seed)
    was = model.training
    model.eval()
    workspace = tempfile.TemporaryDirectory(prefix="rarefy-") if cache is None else None
    folder = Path(workspace.name) if workspace else Path(cache or "")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with silent():
            goal, space, overhead = prepare(model, task, short, budget, seed, folder)
        key = model_key(model, task.identity(), str(seed), repr(budget), repr(space))
        memory = Memory(folder / f"search-{key[:20]}.json")
        quick = run_quickly(model, short, goal, space, overhead, seed, trials, memory)
        length = epochs or full_epochs(task)
        return conclude(model, task, goal, quick, seed, length, folder)
    finally:
        model.train(was)
        if workspace is not None:
            workspace.cleanup()


def prepare(
    model: nn.Module, task: Task, short: Task, budget: Budget, seed: int, folder: Path
) -> tuple[Goal, Space, int]:
    """The goal in absolute numbers, the space of choices, and a file's bytes beside coded weights."""
    counts = counts_of(model, task)
    must_be_integer(budget, counts, counts)  # refuses before anything is exported
    baseline = run_steps(model, task, Recipe(()), seed, folder)[0][0]
    sizes = baseline.facts["measurement"]["bytes"]
    overhead = max(sizes["rfy"] - coded_bytes(model), 0) + NOTES
    metric = evaluate(model, short, "validation", reference=model, label="baseline").value
    goal = Goal.of(budget, sizes["safetensors"], metric, task.metric)
    integer = in_integers(model, short)
    storages: tuple[str, ...] = STORAGES if integer is not None else STORAGES[:2]
    names = limited(budget) - counts.keys()
    if names:
        models, programs = {"before": model}, {"before": baseline.program}
        if integer is not None:
            models["integer"], programs["integer"] = integer, folder / "integer.onnx"
            write_program(integer, task, programs["integer"])
        costs = costs_of(models, programs, task, names)
        if must_be_integer(budget, costs["before"], costs.get("integer")):
            storages = ("int8",)
    repairs: tuple[str, ...] = ("distill", "finetune") if task.labelled else ("distill",)
    return goal, Space(storages, repairs if task.train is not None else ()), overhead


def run_quickly(
    model: nn.Module,
    short: Task,
    goal: Goal,
    space: Space,
    overhead: int,
    seed: int,
    trials: int,
    memory: Memory,
) -> list[tuple[Candidate, Outcome]]:
    """Tries candidates with little training; those that the memory holds are not tried again."""
    found: list[tuple[Candidate, Outcome]] = []
    with silence(), bar("search", trials, "trial") as advance, silent():
        guesses = first_guesses(space, goal.share_without(overhead))[:trials]
        study = constrained_study(seed, max(len(guesses), trials // 3))
        for guess in guesses:
            study.enqueue_trial(guess)

        def evaluate_trial(trial: "Trial") -> tuple[float, float]:
            candidate = suggest(trial, space)
            outcome = memory.get(candidate)
            if outcome is None:
                outcome = run_trial(model, short, candidate, seed, overhead)
                memory.put(candidate, outcome)
            found.append((candidate, outcome))
            advance(1, f"{outcome.size:,.0f} bytes, metric {outcome.metric:.4f}")
            return goal.score(outcome), goal.quick_excess(outcome)

        run_study(study, trials, evaluate_trial)
    return found


def full_epochs(task: Task) -> int:
    """Epochs of the final repair."""
    if task.train is None:
        return EPOCHS[0]
    return min(max(round(FULL_STEPS / steps_of(task.train)), EPOCHS[0]), EPOCHS[1])


def conclude(
    model: nn.Module,
    task: Task,
    goal: Goal,
    quick: list[tuple[Candidate, Outcome]],
    seed: int,
    epochs: int,
    folder: Path,
) -> Search:
    """Trains the best candidates in full until one meets the budget; else the closest one wins."""
    tried = [
        Tried("quick", tuple(map(str, c.steps(1))), o.size, o.metric, goal.excess(o) <= 0)
        for c, o in quick
    ]
    full: list[tuple[float, Recipe]] = []
    for candidate in goal.finalists(quick, FINALISTS):
        recipe = candidate.recipe(epochs, ROUNDS)
        outcome = run_fully(model, task, recipe, seed, folder)
        excess = goal.excess(outcome)
        tried.append(
            Tried("full", tuple(map(str, recipe.steps)), outcome.size, outcome.metric, excess <= 0)
        )
        full.append((excess, recipe))
        if excess <= 0:
            break
    best = min(full, key=lambda pair: max(pair[0], 0.0))[1]
    return Search(best, tuple(tried), goal.baseline)


def run_fully(model: nn.Module, task: Task, recipe: Recipe, seed: int, folder: Path) -> Outcome:
    """Runs a recipe as it will be run in the end, judged on validation data; its stages stay cached."""
    stages, last = run_steps(model, task, recipe, seed, folder)
    quality = evaluate(bake(last), task, "validation", reference=model, label="judge")
    size = stages[-1].facts["measurement"]["bytes"]["rfy"] + NOTES
    return Outcome(float(size), quality.value)
