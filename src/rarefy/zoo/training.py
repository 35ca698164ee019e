# SPDX-License-Identifier: Apache-2.0
"""Training a named network on a named task from scratch, with settings that suit the network."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.loops.state import Watch
from rarefy.measure.quality import accuracy_watch, evaluate
from rarefy.zoo.models import load_model, split_spec, zoo_entry
from rarefy.zoo.tasks import load_task


def train_from_scratch(
    model: str,
    task: str,
    out: Path,
    *,
    epochs: int | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains and writes the weights to `out`; an interrupted training resumes after its last epoch.

    Args:
        model, task: as on the command line.
        out: a .safetensors file; ``<out>.training/`` beside it holds the checkpoint meanwhile.
        epochs, rate: default to the zoo's settings for the network, or 10 and 0.01.
        seed: of the initial weights and the order of the data.

    Returns:
        metric, value, examples, minutes and cpu_minutes.
    """
    torch.manual_seed(seed)
    network = load_model(model)
    data = load_task(task, network)
    kind, rest = split_spec(model)
    entry = zoo_entry(rest) if kind == "zoo" else None
    settings = Training(**(entry.training if entry else {}))
    given: dict[str, Any] = {"epochs": epochs, "rate": rate}
    settings = dataclasses.replace(settings, **{k: v for k, v in given.items() if v is not None})
    folder = out.with_name(out.name + ".training")
    judge = accuracy_watch(data) if data.validation is not None and data.labelled else None
    watch = Watch(f"train {model}", judge, data.metric.higher_is_better, folder=folder, aloud=True)
    wall, processor = time.monotonic(), time.process_time()
    fit(network, data, settings, seed=seed, watch=watch)
    minutes, spent = (time.monotonic() - wall) / 60, (time.process_time() - processor) / 60
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    save_file(network.state_dict(), str(partial))
    partial.replace(out)
    if folder.is_dir():
        folder.rmdir()
    quality = evaluate(network, data)
    return {
        "metric": quality.name,
        "value": quality.value,
        "examples": quality.examples,
        "minutes": minutes,
        "cpu_minutes": spent,
    }
