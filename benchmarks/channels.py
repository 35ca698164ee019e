# SPDX-License-Identifier: Apache-2.0
"""Criteria of channel pruning side by side: the same network, budget, repair and seed, everything measured.

    python benchmarks/channels.py --data DIR [--model zoo:resnet20@cifar10] [--task cifar10:{data}]
        [--macs 0.476] [--criteria l1 taylor …] [--allocation global] [--per unit] [--round-to 8]
        [--epochs 12] [--distil 0.7] [--rate 0.05] [--resolution 1] [--examples 1024] [--seed 0]
        [--json] [--out out/channels]

DIR holds the JPEG arrays of CIFAR-10 (see `rarefy.zoo.datasets`). Every network is cut to the share of
multiply-accumulates, its batch norms are measured anew, and it is trained on labels and the original's
answers; accuracies are those of the test set. Latency is of a batch of one in ONNX Runtime, all networks in
turns in one session of measurement at the end, as a share of the baseline's with quartiles; its kernels work
on eight channels at a time, so widths are multiples of eight unless asked otherwise. Finished rows are kept
under `--out`, so that the table can be made in parts.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.loops.norms import reestimate_norms
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.measure.counts import macs, parameters
from rarefy.measure.latency import latency
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_channels import PruneChannels
from rarefy.step import Context
from rarefy.task import Task, first_example
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task

CRITERIA = (
    "random",
    "l1",
    "geometric-median",
    "taylor",
    "taylor-activation",
    "fisher",
    "norm-scale",
)


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    model: nn.Module
    task: Task
    share: float
    epochs: int
    rate: float
    alpha: float
    examples: int
    seed: int
    per: str
    allocation: str
    round_to: int
    resolution: float
    out: Path

    def kept(self, criterion: str) -> Path:
        """Where a row is kept, without its suffix."""
        parts = [
            criterion,
            self.share,
            self.epochs,
            self.rate,
            self.alpha,
            self.examples,
            self.seed,
        ]
        parts += [self.per, self.allocation, self.round_to, self.resolution]
        return self.out / "-".join(f"{p:.4g}" if isinstance(p, float) else str(p) for p in parts)


def kept_row(criterion: str, setting: Setting) -> tuple[dict[str, Any], Path]:
    """A row and its exported network, made now if it is not there."""
    path = setting.kept(criterion)
    program, record = path.with_name(path.name + ".onnx"), path.with_name(path.name + ".json")
    if not record.is_file():
        row, network = row_of(criterion, setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        program.write_bytes(export_onnx(network, setting.task.example).SerializeToString())
        record.write_text(json.dumps(row))
    return json.loads(record.read_text()), program


def row_of(criterion: str, setting: Setting) -> tuple[dict[str, Any], nn.Module]:
    """Cuts, measures, trains and measures again."""
    started = time.monotonic()
    context = Context(setting.task, setting.model, torch.device("cpu"), setting.seed)
    torch.manual_seed(setting.seed)
    step = PruneChannels(
        sparsity=1 - setting.share,
        target="macs",
        criterion=criterion,  # type: ignore[arg-type]
        per=setting.per,  # type: ignore[arg-type]
        allocation=setting.allocation,  # type: ignore[arg-type]
        round_to=setting.round_to,
        examples=setting.examples,
    )
    network = step.apply(copy.deepcopy(setting.model), context)
    cut = evaluate(network, setting.task, label=f"{criterion}: cut").value
    reestimate_norms(network, setting.task, setting.examples)
    norms = evaluate(network, setting.task, label=f"{criterion}: norms").value
    seconds = time.monotonic() - started
    training = Training(
        setting.epochs, setting.rate, weight_decay=1e-4, resolution=setting.resolution
    )
    repair(network, context, training, alpha=setting.alpha, label=f"{criterion}: repair")
    return {
        "criterion": criterion,
        "macs": macs(network, setting.task.example) / macs(setting.model, setting.task.example),
        "parameters": parameters(network) / parameters(setting.model),
        "cut": cut,
        "norms": norms,
        "repaired": evaluate(network, setting.task, label=f"{criterion}: repaired").value,
        "seconds to cut": seconds,
        "seconds in all": time.monotonic() - started,
    }, network


def timed(networks: dict[str, Any], task: Task) -> dict[str, Any]:
    """Every network's latency beside the baseline's."""
    one = first_example(task.example)
    programs = {n: OnnxRuntime(proto) for n, proto in networks.items()}
    return dict(latency(programs, one, rounds=60, budget=120.0))


def shown(rows: list[dict[str, Any]], baseline: dict[str, Any]) -> str:
    """The table, in Markdown."""
    lines = [
        "| criterion | MACs | parameters | before | after the cut | norms measured anew | repaired "
        "| latency, batch 1 | seconds to cut |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        accuracies = " | ".join(f"{100 * row[k]:.2f} %" for k in ("cut", "norms", "repaired"))
        low, high = row["latency_iqr"]
        lines.append(
            f"| {row['criterion']} | {1 / row['macs']:.2f}× fewer | {1 / row['parameters']:.2f}× fewer "
            f"| {100 * baseline['accuracy']:.2f} % | {accuracies} "
            f"| {row['latency']:.2f} ({low:.2f}–{high:.2f}) | {row['seconds to cut']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="shared/data")
    parser.add_argument("--model", default="zoo:resnet20@cifar10")
    parser.add_argument("--task", default="cifar10:{data}")
    parser.add_argument("--macs", type=float, default=1 / 2.1)
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--allocation", default="global", choices=("global", "local", "lamp"))
    parser.add_argument("--per", default="unit", choices=("unit", "parameters", "macs"))
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--distil", type=float, default=0.7, metavar="ALPHA")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--resolution", type=float, default=1.0)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--batches", type=int, help="use only so many batches of each role")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/channels"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = load_model(given.model)
    task = load_task(given.task.format(data=given.data), model)
    task = task if given.batches is None else shortened(task, given.batches)
    setting = Setting(
        model, task, given.macs, given.epochs, given.rate, given.distil, given.examples,
        given.seed, given.per, given.allocation, given.round_to, given.resolution, given.out,
    )  # fmt: skip
    baseline = {"accuracy": evaluate(model, task).value, "epochs": given.epochs}
    rows, networks = [], {"baseline": export_onnx(model, task.example)}
    for criterion in given.criteria:
        row, program = kept_row(criterion, setting)
        networks[criterion] = program
        rows.append(row)
        print(criterion, {k: v for k, v in row.items() if k != "criterion"}, file=sys.stderr)
    times = timed(networks, task)
    for row in rows:
        found = times[row["criterion"]]
        row |= {"latency": found.ratio, "latency_iqr": list(found.ratio_iqr)}
    print(json.dumps([baseline, *rows], indent=1) if given.json else shown(rows, baseline))


def shortened(task: Task, batches: int) -> Task:
    """The same task with the first batches of each role, to try the script out."""
    roles = ("train", "validation", "test", "calibration")
    few: dict[str, Any] = {
        role: [b for b, _ in zip(getattr(task, role), range(batches), strict=False)]
        for role in roles
        if getattr(task, role) is not None
    }
    return replace(task, **few)


if __name__ == "__main__":
    main()
