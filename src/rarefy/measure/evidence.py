# SPDX-License-Identifier: Apache-2.0
"""What is known about a finished compression: stages, parity, latency, layers, classes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rarefy.errors import RuntimeParityError
from rarefy.export.artefact import Artefact
from rarefy.export.ceiling import ceilings
from rarefy.export.lint import Product, lint, told
from rarefy.export.parity import Parity, check_parity, is_quantised
from rarefy.export.runtimes import THROUGHOUT, open_program
from rarefy.measure.counts import layers
from rarefy.measure.energy import inference_energy
from rarefy.measure.environment import environment
from rarefy.measure.memory import peak_memory
from rarefy.measure.quality import Quality, batches_of, evaluate
from rarefy.measure.timing import time_stages
from rarefy.store.pack import pack
from rarefy.store.rfy import read
from rarefy.task import Task, first_example

PARITY_EXAMPLES = 256
NO_FLOATS = "{} opens no network of floats here: the baseline's time is ONNX Runtime's"


def metric_facts(quality: Quality, through: str) -> dict[str, Any]:
    """The metric as it stands in measurements.json."""
    return {
        "name": quality.name,
        "value": quality.value,
        "higher_is_better": quality.higher_is_better,
        "through": through,
        "examples": quality.examples,
    }


def remarks(fact: dict[str, Any]) -> list[str]:
    """What a reader of the report should know of a step: its notes, and what it left whole and why."""
    name, record = fact["measurement"]["name"], fact["record"]
    reasons: dict[str, list[str]] = {}
    for group, why in record.get("spared", {}).items():
        reasons.setdefault(why, []).append(group)
    spared = [
        f"{name} left {listed(groups)} whole: {why}" for why, groups in sorted(reasons.items())
    ]
    kept = [f"{name}: {line}" for line in record.get("barriers", [])]
    return [*record.get("notes", []), *spared, *kept]


def listed(names: list[str], most: int = 3) -> str:
    """The first names, in quotes, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{n}'" for n in names[:most]) + more


@dataclass(frozen=True)
class Evidence:
    """Collects the proof for a result.

    Attributes:
        original: the network before.
        model: the network after, baked.
        task: on which both are measured.
        programs: exported networks of all stages, baseline first.
        facts: what was measured at each stage.
        runtime: that runs the result.
    """

    original: nn.Module
    model: nn.Module
    task: Task
    programs: list[Path]
    facts: list[dict[str, Any]]
    runtime: str = "onnxruntime"

    def document(self, artefact: Artefact) -> dict[str, Any]:
        """Everything in measurements.json but the head and the budget.

        Raises:
            RuntimeParityError: the exported file does not compute what the network computes.
        """
        threads = torch.get_num_threads()
        parity, quality, memory = self.through_runtime(artefact.program, threads)
        stages = [dict(fact["measurement"]) for fact in self.facts]
        last = {**stages[-1], "name": "artefact", "metric": metric_facts(quality, self.runtime)}
        last |= {
            "bytes": {**last["bytes"], "onnx": artefact.program.stat().st_size},
            "memory_bytes": memory,
            "seconds": 0.0,
        }
        if artefact.mobile.is_file():
            last["bytes"]["tflite"] = artefact.mobile.stat().st_size
        stages.append(last)
        time_stages(stages, self.programs, self.task.example, self.runtime, threads)
        for stage in stages:
            stage["energy_uj"] = inference_energy(stage["macs"], stage["bytes"]["onnx"])
        products = self.products(artefact.program, threads) if is_quantised(self.model) else []
        return {
            "environment": environment(threads, self.runtime),
            "stages": stages,
            "layers": self.layer_table(artefact),
            "parity": parity_facts(parity),
            "training": {
                f"{number}. {fact['measurement']['name']}": fact["record"]["training"]
                for number, fact in enumerate(self.facts)
                if fact["record"].get("training")
            },
            "notes": [
                *(note for fact in self.facts for note in remarks(fact)),
                *told(products, self.runtime),
                *([NO_FLOATS.format(self.runtime)] if self.runtime in THROUGHOUT else []),
            ],
            "kernels": [dataclasses.asdict(product) for product in products],
            "ceilings": (
                ceilings(self.runtime, threads) if any(p.microseconds for p in products) else {}
            ),
            **self.classes(quality),
        }

    def products(self, path: Path, threads: int) -> list[Product]:
        """What the linter says of a file, with the times of one example."""
        return lint(path, self.runtime, threads, first_example(self.task.example))

    def through_runtime(self, path: Path, threads: int) -> tuple[Parity, Quality, int]:
        """Parity, metric and memory of the exported network; it is closed again.

        Raises:
            RuntimeParityError: parity fails.
        """
        program = open_program(path, self.runtime, threads=threads)
        batches = list(batches_of(self.task, "calibration", PARITY_EXAMPLES))
        parity = check_parity(self.model, program, batches)
        if not parity.passed:
            raise RuntimeParityError(complaint(parity))
        quality = evaluate(program, self.task, reference=self.original, label="measure the file")
        memory = peak_memory(program, first_example(self.task.example))
        return parity, quality, memory

    def layer_table(self, artefact: Artefact) -> list[dict[str, Any]]:
        """For every layer its size before (as the original's tensors) and after (as coded)."""
        scratch = artefact.folder / "layers.scratch"
        pack(artefact.program, scratch, coder=artefact.coder)
        with read(scratch) as archive:
            coded = {clean(name): size for name, size in archive.sizes().items()}
        scratch.unlink()
        before = {layer.name: layer for layer in layers(self.original)}
        modules = dict(self.original.named_modules())
        noise: dict[str, float] = {}
        for fact in self.facts:
            noise |= fact["record"].get("sqnr_db", {})
        rows = []
        for layer in layers(self.model):
            prefix = f"{layer.name}."
            old = before.get(layer.name)
            held = modules[layer.name].parameters() if old else ()
            rows.append(
                {
                    "name": layer.name,
                    "type": layer.type,
                    "shape": list(layer.shape),
                    "parameters": layer.parameters,
                    "nonzero": layer.nonzero,
                    "distinct": layer.distinct,
                    "form": layer.form,
                    "sqnr_db": noise.get(layer.name),
                    "bytes_before": sum(p.numel() * p.element_size() for p in held),
                    "bytes_after": sum(
                        size for name, size in coded.items() if name.startswith(prefix)
                    ),
                }
            )
        return rows

    def classes(self, quality: Quality) -> dict[str, Any]:
        """Confusion counts before and after, where the task is a classification."""
        before = self.facts[0].get("confusion")
        if before is None or quality.confusion is None or not self.task.classes:
            return {}
        return {
            "classes": {
                "names": list(self.task.classes),
                "confusion_before": before,
                "confusion_after": quality.confusion.tolist(),
                "examples": quality.examples,
            }
        }


def clean(name: str) -> str:
    """The name of a tensor as the network's user knows it, without traces of parametrization."""
    return name.replace("parametrizations.", "").replace(".original", "")


def complaint(parity: Parity) -> str:
    """Why parity failed, in a sentence."""
    where = parity.first_diverging_layer
    layer = f"; the first layer that differs is '{where}'" if where else ""
    return (
        f"the exported file does not compute what the network computes: they differ by "
        f"{parity.max_relative:.2g} of the output's range where {parity.tolerance:.2g} is allowed{layer}"
    )


def parity_facts(parity: Parity) -> dict[str, Any]:
    """Parity as it stands in measurements.json."""
    return {
        "runtime": parity.runtime,
        "passed": parity.passed,
        "max_absolute": parity.max_absolute,
        "max_relative": parity.max_relative,
        "agreement": parity.agreement,
        "samples": parity.samples,
        "tolerance": parity.tolerance,
        "first_diverging_layer": parity.first_diverging_layer,
    }
