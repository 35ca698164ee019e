# SPDX-License-Identifier: Apache-2.0
"""Measuring a network or an exported file by its name, and exporting a network as it is."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from rarefy.compress import check
from rarefy.errors import RuntimeParityError
from rarefy.export.artefact import ARCHIVE, PROGRAM, write_program
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.parity import check_parity
from rarefy.export.runtimes import open_program
from rarefy.float32 import in_float32
from rarefy.measure.counts import macs, nonzero, parameters
from rarefy.measure.evidence import complaint, metric_facts
from rarefy.measure.latency import latency
from rarefy.measure.memory import peak_memory
from rarefy.measure.quality import batches_of, evaluate
from rarefy.recipe import Recipe
from rarefy.task import Task, first_example
from rarefy.zoo.models import load_model, split_spec
from rarefy.zoo.tasks import load_task


def measure_anything(
    model: str, task: str, weights: Path | None = None, runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """One stage of ``measurements.json`` for a network, a .onnx, a .rfy or a result's folder.

    Files are measured through the runtime, without any code of the network that they came from.
    """
    kind, rest = split_spec(model)
    if kind == "directory":
        folder = Path(rest)
        rest = str(
            next(
                (folder / n for n in (ARCHIVE, PROGRAM) if (folder / n).is_file()), folder / ARCHIVE
            )
        )
    if kind in ("file", "directory"):
        return measure_file(Path(rest), load_task(task), runtime)
    network = load_model(model, weights)
    network, data = in_float32(network, load_task(task, network))
    check(network, data, Recipe(()))
    with tempfile.TemporaryDirectory(prefix="rarefy-") as folder_name:
        path = Path(folder_name) / PROGRAM
        sizes = write_program(network, data, path, runtime)
        stage = program_facts(path, data, runtime)
    quality = evaluate(network, data, reference=network)
    return {
        "name": model,
        "metric": metric_facts(quality, "pytorch"),
        "parameters": parameters(network),
        "nonzero": nonzero(network),
        "macs": macs(network, data.example),
        "bytes": sizes,
        **stage,
        "seconds": 0.0,
    }


def measure_file(path: Path, task: Task, runtime: str = "onnxruntime") -> dict[str, Any]:
    """Measures an exported network from its file alone."""
    from rarefy.export.contents import program_counts
    from rarefy.store.pack import load_onnx, pack

    with tempfile.TemporaryDirectory(prefix="rarefy-") as folder_name:
        program = path
        sizes = {
            "safetensors": None,
            "onnx": None,
            "rfy": path.stat().st_size if path.is_file() else None,
        }
        if path.suffix == ".rfy":
            program = Path(folder_name) / PROGRAM
            save_onnx(load_onnx(path), program)
        else:
            sizes["rfy"] = pack(path, Path(folder_name) / ARCHIVE)
        sizes["onnx"] = program.stat().st_size
        counts = program_counts(program)
        sizes["safetensors"] = counts.pop("float32_bytes")
        opened = open_program(program, runtime, threads=torch.get_num_threads())
        quality = evaluate(opened, task, reference=opened)
        stage = program_facts(program, task, runtime)
    return {
        "name": str(path),
        "metric": metric_facts(quality, runtime),
        **counts,
        "macs": None,
        "bytes": sizes,
        **stage,
        "seconds": 0.0,
    }


def program_facts(path: Path, task: Task, runtime: str) -> dict[str, Any]:
    """Latency of a batch of one and memory of an exported network."""
    threads = torch.get_num_threads()
    example = first_example(task.example)
    opened = open_program(path, runtime, threads=threads).fixed(example)
    found = latency({"it": opened}, example, threads=threads)["it"]
    return {
        "latency_ms": {
            "runtime": runtime,
            "batch": 1,
            "threads": threads,
            "median": found.median,
            "iqr": list(found.iqr),
            "cpu_median": found.cpu_median,
            "precision": opened.precision,
        },
        "memory_bytes": peak_memory(opened, example),
    }


def export_network(
    model: str, task: str, weights: Path | None, out: Path, runtime: str = "onnxruntime"
) -> str:
    """Exports a network, checks parity on the task's inputs and writes ``model.onnx``; says what it did.

    Raises:
        RuntimeParityError: the file does not compute what the network computes; nothing is written.
    """
    network = load_model(model, weights)
    network, data = in_float32(network, load_task(task, network))
    check(network, data, Recipe(()))
    program = export_onnx(network, data.example, runtime=runtime)
    opened = open_program(program, runtime, threads=torch.get_num_threads())
    parity = check_parity(network, opened, list(batches_of(data, "calibration", 64)))
    if not parity.passed:
        raise RuntimeParityError(complaint(parity))
    out.mkdir(parents=True, exist_ok=True)
    save_onnx(program, out / PROGRAM)
    return (
        f"{out / PROGRAM}: {(out / PROGRAM).stat().st_size:,} bytes, parity holds on {parity.samples} "
        f"inputs (largest difference {parity.max_relative:.1e} of the output's range)"
    )
