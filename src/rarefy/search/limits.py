# SPDX-License-Identifier: Apache-2.0
"""Which limits of a budget the methods at hand can meet, found out before anything is searched."""

import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn

from rarefy.budget import Budget
from rarefy.compress import apply_step
from rarefy.errors import ModelError, RecipeError
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.forms.shadow import bake
from rarefy.measure.counts import macs, parameters
from rarefy.measure.energy import inference_energy
from rarefy.measure.latency import latency
from rarefy.measure.memory import peak_memory
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.task import Task, first_example

SLACK = 0.05  # by how much a time may miss its limit before a search is refused for it
UNITS = {"latency": " ms", "memory": " bytes", "energy": " µJ"}
SEARCHED = ("size", "metric_drop")  # limits that a search can meet by its choices


def limited(budget: Budget) -> set[str]:
    """The names of the limits that a budget sets, apart from those that a search can meet."""
    asked = {f.name for f in dataclasses.fields(budget) if getattr(budget, f.name) is not None}
    return asked - set(SEARCHED)


def in_integers(model: nn.Module, task: Task) -> nn.Module | None:
    """A copy of the network with integer weights and activations; None where it can't have them."""
    context = Context(task, model, next(model.parameters()).device)
    try:
        changed, _ = apply_step(StaticInt8(), copy.deepcopy(model), context)
    except ModelError:
        return None
    return bake(changed)


def costs_of(
    models: dict[str, nn.Module], programs: dict[str, Path], task: Task, names: set[str]
) -> dict[str, dict[str, float]]:
    """What several networks cost, by the names of a budget's limits; times are taken side by side.

    Args:
        models: by name.
        programs: their exported files.
        task: whose example is run.
        names: of the limits that matter.
    """
    example, threads = first_example(task.example), torch.get_num_threads()
    found: dict[str, dict[str, float]] = {}
    runtimes: dict[str, OnnxRuntime] = {}
    for name, model in models.items():
        size, products = programs[name].stat().st_size, macs(model, task.example)
        found[name] = {"energy": inference_energy(products, size) or 0.0}
        runtimes[name] = OnnxRuntime(programs[name], threads=threads)
        if "memory" in names:
            found[name]["memory"] = peak_memory(runtimes[name], example)
    if "latency" in names:
        for name, timed in latency(runtimes, example, threads=threads).items():
            found[name]["latency"] = timed.iqr[0]
    return found


def counts_of(model: nn.Module, task: Task) -> dict[str, float]:
    """The costs that a network has on paper, which no method at hand changes."""
    return {"parameters": parameters(model), "macs": macs(model, task.example)}


def must_be_integer(
    budget: Budget, before: dict[str, float], integer: dict[str, float] | None
) -> bool:
    """Whether the budget can only be met by integer arithmetic.

    Zeros and shared values change the file alone: the runtime computes with them as before, and they count
    as parameters and products. So every other limit must hold already, or hold in integers.

    Args:
        budget: what is asked for.
        before, integer: costs of the network as it is and of the network in integers, if it can be;
            limits on other costs are not looked at.

    Raises:
        RecipeError: neither does; says which limit, what was found, and what to ask for instead.
    """
    needed = False
    for name in sorted(limited(budget) & before.keys()):
        limit, now = budget.limit(name, before[name]), before[name]
        if limit is None or now <= limit:
            continue
        best = integer[name] if integer is not None else now
        if best > limit * (1 + SLACK):
            unit, kind = UNITS.get(name, ""), "with static-int8" if integer else "and not less"
            raise RecipeError(
                f"budget: {name} {limit:.4g}{unit} is out of reach: onnxruntime needs {now:.4g}{unit}, "
                f"{kind} {best:.4g}{unit}, and zeros or shared values shrink the file alone; ask for "
                f"size= or for a larger {name}="
            )
        needed = True
    return needed
