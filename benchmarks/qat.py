# SPDX-License-Identifier: Apache-2.0
"""Quantisation-aware training bit by bit: one network, several seeds, accuracies through the exported file.

    python benchmarks/qat.py --data DIR [--model zoo:resnet20@cifar10] [--task cifar10:{data}]
        [--bits 4 3 2 8] [--epochs 1 1 2 1] [--rate 0.0002 0.0005 0.001 0.0001] [--images 0 0 0 12500]
        [--seeds 0 1 2] [--method learned-step] [--optimiser adam] [--out out/qat] [--json]

DIR holds the JPEG arrays of CIFAR-10 (see `rarefy.zoo.datasets`). Each width is that of inner weights and
activations; the first and the last layer have 8 bits. For each the table says what calibration alone reaches
(PTQ) and what training reaches (QAT), both on the test set and through ONNX Runtime: means over the seeds,
with the least and the largest behind. `--epochs`, `--rate` and `--images` have one number, or one for each of
`--bits`; the last trains on so many of the training images only, drawn with the seed, or on all (0). A
finished training is kept in `--out` and not run again.
"""

import argparse
import copy
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.quality import evaluate
from rarefy.quantize.quantization_aware_training import QuantizationAwareTraining
from rarefy.step import Context
from rarefy.store.pack import pack
from rarefy.task import Task
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task

TRAINING = 50_000  # images of CIFAR-10


@dataclass(frozen=True)
class Setting:
    """What a row depends on besides its bits."""

    model: str
    task: str
    method: str
    epochs: int
    images: int
    optimiser: str
    rate: float
    seed: int


def fewer(task: Task, images: int, seed: int) -> Task:
    """The task with so many of its training images; all of them for 0."""
    loader: Any = task.train
    if not images or images >= len(loader.dataset):
        return task
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(loader.dataset), generator=draw)[:images].tolist()
    part = DataLoader(
        Subset(loader.dataset, chosen),
        loader.batch_size,
        shuffle=True,
        collate_fn=loader.collate_fn,
    )
    return replace(task, train=part)


def reached(model: nn.Module, task: Task, folder: Path) -> tuple[float, int]:
    """Accuracy of the exported file through ONNX Runtime, and its bytes when coded."""
    program = export_onnx(model, task.example)
    save_onnx(program, folder / "model.onnx")
    size = pack(folder / "model.onnx", folder / "model.rfy")
    return evaluate(OnnxRuntime(program), task).value, size


def row_of(
    bits: int, original: nn.Module, task: Task, setting: Setting, out: Path
) -> dict[str, Any]:
    """Calibrates, then trains; both measured."""
    row: dict[str, Any] = {"bits": bits, **asdict(setting)}
    out.mkdir(parents=True, exist_ok=True)
    for name, epochs in (("ptq", 0), ("qat", setting.epochs)):
        started, cpu = time.monotonic(), time.process_time()
        step = QuantizationAwareTraining(
            bits=bits,
            activation_bits=bits,
            method=setting.method,  # type: ignore[arg-type]
            epochs=epochs,
            optimiser=setting.optimiser,  # type: ignore[arg-type]
            rate=setting.rate,
        )
        context = Context(task, original, torch.device("cpu"), setting.seed, {}, out / f"at-{bits}")
        torch.manual_seed(setting.seed)
        network = step.apply(copy.deepcopy(original), context)
        row[name], row[f"{name}_bytes"] = reached(network, task, out)
        row[f"{name}_seconds"] = round(time.monotonic() - started)
        row[f"{name}_cpu"] = round(time.process_time() - cpu)
    return row


def kept_row(
    bits: int, original: nn.Module, task: Task, setting: Setting, out: Path
) -> dict[str, Any]:
    """A row from the folder if it was computed with the same settings, else computed and kept."""
    name = f"{bits}-{setting.method}-{setting.epochs}-{setting.images}-{setting.seed}.json"
    path = out / name
    if path.is_file():
        row = json.loads(path.read_text(encoding="utf-8"))
        if {**row, "bits": bits, **asdict(setting)} == row:
            return row
    row = row_of(bits, original, task, setting, out)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(row), encoding="utf-8")
    partial.replace(path)
    return row


def spread(values: list[float], form: str) -> str:
    """Mean, and the ends where they differ."""
    low, high = min(values), max(values)
    mean = format(sum(values) / len(values), form)
    return mean if low == high else f"{mean} ({low:{form}} to {high:{form}})"


def printed(rows: list[dict[str, Any]], exact: float) -> None:
    """The table, in Markdown."""
    print(f"float {100 * exact:.2f} %\n")
    print("| bits | images | seeds | PTQ, % | QAT, % | loss, points | `.rfy` |")
    print("| ---: | ---: | ---: | ---: | --- | --- | --- |")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        same = [row for row in rows if row["bits"] == bits]
        reached = [100 * row["qat"] for row in same]
        print(
            f"| {bits} | {same[0]['epochs'] * (same[0]['images'] or TRAINING):,} | {len(same)} "
            f"| {spread([100 * row['ptq'] for row in same], '.2f')} | {spread(reached, '.2f')} "
            f"| {spread([100 * exact - value for value in reached], '.2f')} "
            f"| {spread([row['qat_bytes'] for row in same], ',.0f')} |"
        )


def each(given: argparse.Namespace, name: str) -> list[Any]:
    """An option's number for each of the widths."""
    values: list[Any] = getattr(given, name)
    if len(values) not in (1, len(given.bits)):
        raise SystemExit(f"--{name} has {len(values)} numbers for {len(given.bits)} of --bits")
    return values * len(given.bits) if len(values) == 1 else values


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--model", default="zoo:resnet20@cifar10")
    parser.add_argument("--task", default="cifar10:{data}")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2, 8])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 1, 2, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--method", default="learned-step")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 0, 0, 12500])
    parser.add_argument("--rate", type=float, nargs="+", default=[0.0002, 0.0005, 0.001, 0.0001])
    parser.add_argument("--optimiser", default="adam")
    parser.add_argument("--out", type=Path, default=Path("out/qat"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    plan = list(
        zip(given.bits, *(each(given, n) for n in ("epochs", "images", "rate")), strict=True)
    )
    torch.set_num_threads(1)
    original = load_model(given.model)
    task = replace(load_task(given.task.format(data=given.data)), validation=None)
    exact = evaluate(original, task).value
    rows = []
    for seed, (bits, epochs, images, rate) in product(given.seeds, plan):
        how = given.method, epochs, images, given.optimiser, rate, seed
        setting = Setting(given.model, given.task, *how)
        rows.append(kept_row(bits, original, fewer(task, images, seed), setting, given.out))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps({"float": exact, "rows": rows}, indent=1))
    else:
        printed(rows, exact)


if __name__ == "__main__":
    main()
