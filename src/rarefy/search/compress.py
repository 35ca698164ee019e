# SPDX-License-Identifier: Apache-2.0
"""The one verb of the toolkit: compress by a recipe that is given, or by one that a search finds."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rarefy.budget import Budget
from rarefy.compress import Result, run_recipe
from rarefy.errors import RecipeError
from rarefy.export.runtimes import THROUGHOUT, check_runtime
from rarefy.float32 import in_float32
from rarefy.recipe import Recipe, load_recipe
from rarefy.report.page import write_report
from rarefy.step import Step
from rarefy.task import Task


def compress(
    model: nn.Module,
    task: Task,
    recipe: str | Path | Recipe | Sequence[Step] | None = None,
    *,
    budget: Budget | None = None,
    runtime: str = "onnxruntime",
    seed: int = 0,
    cache: Path | None = None,
    names: tuple[str, str] | None = None,
) -> Result:
    """Returns a smaller network that does the same job, measured and exported.

    Args:
        model: the trained network; it stays untouched. In other floats it is taken as float32.
        task: data, loss and metric.
        recipe: the id of a published system, a YAML file, a `Recipe` or a list of steps.
        budget: with a recipe it is checked; without one a search finds a recipe that meets it.
        runtime: in which the result will run and is measured: ``"onnxruntime"``, ``"openvino"`` or
            ``"litert"``, which adds ``model.tflite`` to the result.
        seed: of everything; the same seed gives the same files on the same machine.
        cache: folder in which finished stages are kept, so that an interrupted run resumes.
        names: how model and task are called in reports.

    Raises:
        RarefyError: bad input, in one sentence.

    Examples:
        result = rf.compress(model, task, [rf.PruneWeights(sparsity=0.9), rf.Distill(epochs=3)])
        result.save("out")
    """
    check_runtime(runtime)
    model, task = in_float32(model, task)
    if recipe is not None:
        chosen = fitting(as_recipe(recipe), runtime)
        result = run_recipe(
            model, task, chosen, seed=seed, budget=budget, cache=cache, names=names, runtime=runtime
        )
    elif budget is not None and runtime != "onnxruntime":
        raise RecipeError(
            f"a recipe for a budget is searched with onnxruntime, not with {runtime}; name a recipe too"
        )
    elif budget is not None:
        result = within(budget, model, task, seed, cache, names)
    else:
        raise RecipeError("compress needs a recipe, or a budget for which one is searched")
    return result.written_by(write_report)


def fitting(recipe: Recipe, runtime: str) -> Recipe:
    """The recipe, if its result can run there.

    Raises:
        RecipeError: floats are left, and the runtime takes none.
    """
    if runtime in THROUGHOUT and not any(step.fixes_ranges for step in recipe.steps):
        raise RecipeError(
            f"{runtime} runs a network here that is in integers from end to end; end the recipe with "
            "static-int8"
        )
    return recipe


def within(
    budget: Budget,
    model: nn.Module,
    task: Task,
    seed: int,
    cache: Path | None,
    names: tuple[str, str] | None,
) -> Result:
    """Searches a recipe and runs it; what was tried is told in the result's document under ``search``."""
    from rarefy.search.budget import search

    workspace = tempfile.TemporaryDirectory(prefix="rarefy-") if cache is None else None
    folder = (
        Path(workspace.name) if workspace else cache
    )  # the search trains what the run uses again
    found = search(model, task, budget, seed=seed, cache=folder)
    result = run_recipe(
        model, task, found.recipe, seed=seed, budget=budget, cache=folder, names=names
    )
    result.document["search"] = found.facts()
    return dataclasses.replace(result, workspace=workspace) if workspace else result


def as_recipe(recipe: str | Path | Recipe | Sequence[Step]) -> Recipe:
    """A recipe from any of its spellings."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe)
    return Recipe(tuple(recipe))
