# SPDX-License-Identifier: Apache-2.0
"""Runs a recipe on a network: every step measured, every stage kept, the end exported and proven."""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rarefy
from rarefy.budget import Budget
from rarefy.errors import ModelError, described
from rarefy.export.artefact import Artefact, write_program
from rarefy.export.finished import baked_copy
from rarefy.forms.shadow import bake
from rarefy.loops.finite import all_finite, finite_or_hidden
from rarefy.measure.counts import macs, nonzero, parameters
from rarefy.measure.evidence import Evidence, metric_facts
from rarefy.measure.memory import give_back
from rarefy.measure.quality import evaluate
from rarefy.measure.verdict import judge
from rarefy.recipe import Recipe
from rarefy.step import Context, Step
from rarefy.store.mapped import copy_to_files, move_to_files
from rarefy.store.replacing import together
from rarefy.store.stages import Stage, model_key, open_stage
from rarefy.task import Task, call, move, tensors_of


@dataclass(frozen=True)
class Result:
    """A compressed network with its evidence.

    Attributes:
        model: the compressed network, weights baked; computes what the exported file computes.
        measurements: one mapping a stage, as in ``measurements.json``; the last is the artefact as saved.
        document: the whole content of ``measurements.json``.
        recipe: what was done.
        artefact: the files, in a folder that lives as long as the result.
        met: whether the budget holds; True without one.
        writers: called with the folder after everything else is saved, for example to write the report.
    """

    model: nn.Module
    document: dict[str, Any]
    recipe: Recipe
    artefact: Artefact
    met: bool = True
    writers: tuple[Callable[[Path], Any], ...] = ()
    workspace: Any = field(default=None, repr=False)

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """One mapping a stage; the first is the baseline, the last the artefact."""
        return self.document["stages"]

    def written_by(self, *writers: Callable[[Path], Any]) -> "Result":
        """The same result, whose `save` also calls `writers` with the folder."""
        return dataclasses.replace(self, writers=(*self.writers, *writers))

    def save(self, directory: str | Path) -> Path:
        """Writes model.onnx, model.rfy, recipe.yaml, measurements.json and the report, or none of them."""
        with together(directory) as made:
            self.artefact.copy_to(made, self.recipe.to_yaml(), self.document)
            for write in self.writers:
                write(made)
        return Path(directory)


def run_recipe(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    cache: Path | None = None,
    names: tuple[str, str] | None = None,
    runtime: str = "onnxruntime",
) -> Result:
    """Applies the steps of `recipe` to a copy of `model` and exports the result.

    Args:
        model: the trained network; stays untouched and serves as teacher.
        task: data, loss, metric.
        recipe: the steps.
        seed: of everything; the same seed gives the same files on the same machine.
        budget: only checked here; the verdict is part of the result.
        cache: folder of finished stages, behind which a run that was cut short goes on; None keeps none.
        names: how model and task are called in reports.
        runtime: in which the result is proven and timed.

    Raises:
        RarefyError: bad input, before the first step where possible.
    """
    check(model, task, recipe)
    workspace = tempfile.TemporaryDirectory(prefix="rarefy-") if cache is None else None
    folder = Path(workspace.name) if workspace else Path(cache or "")
    folder.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    try:
        stages, last = run_steps(model, task, recipe, seed, folder, runtime)
        bake(last, lambda module: move_to_files(module, folder))
        give_back()
        programs, facts = [s.program for s in stages], [s.facts for s in stages]
        evidence = Evidence(model, last, task, programs, facts, runtime)
        place = folder / f"result-{stages[-1].key}"
        artefact = Artefact.make(programs[-1], place, recipe.coder, runtime)
        document = evidence.document(artefact)
    finally:
        model.train(was_training)
    labels = names or (type(model).__name__, task.name)
    head = {"rarefy": rarefy.__version__, "model": labels[0], "task": labels[1], "seed": seed}
    document = {**head, **document}
    artefact.seal(document, recipe.to_yaml())
    if budget is not None:
        document["budget"] = judge(budget, document["stages"])
    met = budget is None or document["budget"]["met"]
    return Result(last, document, recipe, artefact, met, workspace=workspace)


def check(model: nn.Module, task: Task, recipe: Recipe) -> None:
    """Refuses what can't work before hours are spent.

    Raises:
        RecipeError: the task lacks what a step needs.
        ModelError: weights that are not finite, or a forward that fails.
    """
    recipe.check(task)
    wrong = [n for n, t in model.named_parameters() if t.is_floating_point() and not all_finite(t)]
    buffers = [(n, t) for n, t in model.named_buffers() if t.is_floating_point()]
    wrong += [name for name, tensor in buffers if not finite_or_hidden(tensor)]
    if wrong:
        raise ModelError(
            f"'{wrong[0]}' holds NaN or infinity; give a network whose weights are finite"
        )
    device = next((p.device for p in model.parameters()), None)
    if device is None:
        raise ModelError(f"{type(model).__name__} has no parameters: there is nothing to compress")
    was = model.training
    try:
        with torch.no_grad():
            outputs = call(model.eval(), move(task.example, device))
    except Exception as error:  # whatever the network's own code may raise
        raise ModelError(
            f"the network fails on the example of task '{task.name}': {described(error)}"
        ) from None
    finally:
        model.train(was)
    if not all(all_finite(t) for t in tensors_of(outputs) if t.is_floating_point()):
        raise ModelError(f"the network gives NaN or infinity on the example of task '{task.name}'")


def step_seed(seed: int, number: int) -> int:
    """The seed of a step: unrelated between neighbouring seeds and steps."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "little") >> 1


def run_steps(
    original: nn.Module,
    task: Task,
    recipe: Recipe,
    seed: int,
    folder: Path,
    runtime: str = "onnxruntime",
) -> tuple[list[Stage], nn.Module]:
    """Runs what is not cached; returns all stages with the baseline first, and the last network, unbaked."""
    versions = f"{rarefy.__version__} {torch.__version__}"
    if runtime != "onnxruntime":  # steps may suit their network to it
        versions += f" {runtime}"
    root = model_key(original, task.identity(), str(seed), versions)
    stage = open_stage(folder, root, "baseline")
    if not stage.finished:
        measure_stage(stage, original, original, task, "baseline", 0.0, {}, runtime)
    stages, current = [stage], None
    device = next(original.parameters()).device
    for number, step in enumerate(recipe.steps, 1):
        before, stage = stage, open_stage(folder, stage.key, f"{number} {step}")
        stages.append(stage)
        if stage.finished:
            current = None  # restored only if a later step needs it
            continue
        if current is None:
            current = copy_to_files(original, folder) if number == 1 else before.load(original)
        context = Context(
            task, original, device, step_seed(seed, number), {}, stage.working_folder(), runtime
        )
        current, seconds = apply_step(step, current, context)
        move_to_files(current, folder)
        give_back()
        measure_stage(stage, current, original, task, str(step), seconds, context.record, runtime)
    if current is None:
        current = stage.load(original) if recipe.steps else copy_to_files(original, folder)
    return stages, current


def apply_step(step: Step, model: nn.Module, context: Context) -> tuple[nn.Module, float]:
    """One step under its own seed; returns the network in eval mode and the seconds it took."""
    started = time.monotonic()
    torch.manual_seed(context.seed)
    changed = step.apply(model, context)
    for name, tensor in changed.named_parameters():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise ModelError(f"{step.key()} left NaN or infinity in '{name}'; use a lower rate")
    return changed.eval(), time.monotonic() - started


def measure_stage(
    stage: Stage,
    model: nn.Module,
    original: nn.Module,
    task: Task,
    name: str,
    seconds: float,
    record: dict[str, Any],
    runtime: str,
) -> None:
    """Exports and measures the network as it would be stored now, and saves the stage."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    stored = baked_copy(model, stage.folder) if model is not original else model
    sizes = write_program(stored, task, stage.program, runtime)
    give_back()
    quality = evaluate(stored, task, reference=original, label=f"measure {name[:40]}")
    facts = {
        "name": name,
        "metric": metric_facts(quality, "pytorch"),
        "parameters": parameters(stored),
        "nonzero": nonzero(stored),
        "macs": macs(stored, task.example),
        "bytes": sizes,
        "latency_ms": None,
        "memory_bytes": None,
        "seconds": seconds,
    }
    confusion = quality.confusion.tolist() if quality.confusion is not None else None
    stage.save(model, {"measurement": facts, "record": record, "confusion": confusion})
    del stored
    give_back()
