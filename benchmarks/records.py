# SPDX-License-Identifier: Apache-2.0
"""The smallest files at a given error: what rarefy writes, beside what was published.

    python benchmarks/records.py --data DIR [--rates 2 1 0.6 0.5 0.4] [--resnet-rates 3 2]
                                 [--plot FILE.html] [--json]
    python benchmarks/records.py --data DIR --train lenet5-3000

DIR holds ``mnist.npz`` and the JPEG arrays of CIFAR-10 (see `rarefy.zoo.datasets`). Every file is counted
whole and judged in a process of its own, which has the decoder and numpy alone (``judge.py``). Rows without
training are made here and now. Those with training lie beside this script in records/; `--train` makes one
of them anew, its checkpoints in out/records. Choices are made on held-back training images.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.graph.fold import fold_batch_norms
from rarefy.measure.quality import evaluate
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.recipe import Recipe
from rarefy.step import Context
from rarefy.store.rfy import write
from rarefy.task import Task
from rarefy.zoo.datasets import cifar10
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task, mnist_task

HOME = Path(__file__).parent
KEPT = HOME / "records"
OUT = HOME.parent / "out" / "records"


@dataclass(frozen=True)
class Record:
    """A network, its images, and the steps that make its file."""

    network: str  # of the zoo, and of the judge
    source: str  # trained weights, or the bare network
    parameters: int
    recipe: str
    absorbed: bool = False  # whether biases of convolutions move into the layer behind them

    def task(self, data: Path) -> Task:
        """Its images; digits are shifted by a pixel at most, for more would cost a small network bytes."""
        if self.network == "resnet20":
            return load_task(f"cifar10:{data}")
        return mnist_task(str(data / "mnist.npz"), pad=1)


def lenet5(recipe: str) -> Record:
    """The LeNet-5 that ships with rarefy."""
    return Record("lenet5", "zoo:lenet5@mnist", 431_080, recipe, absorbed=bool(recipe))


TRAINED = {
    "lenet5-3000": lenet5("""
steps:
  - prune-channels: {sparsities: {conv1: 0.6, conv2: 0.68, fc1: 0.872}, allocation: local, largest: 0.95}
  - finetune: {epochs: 20, optimiser: adam, rate: 0.002}
  - entropy-penalty: {epochs: 120, strength: 0.034, rate: 0.003}
"""),
    "lenet5-1150": lenet5("""
steps:
  - prune-channels: {sparsities: {conv1: 0.7, conv2: 0.72, fc1: 0.928}, allocation: local, largest: 0.95}
  - finetune: {epochs: 30, optimiser: adam, rate: 0.002}
  - entropy-penalty: {epochs: 120, strength: 0.12, rate: 0.003, bits: 4}
"""),
    "lenet300": Record("lenet300", "zoo:lenet300", 266_610, """
steps:
  - finetune: {epochs: 20, rate: 0.05, weight_decay: 0.0005, warmup: 0.1}
  - prune-channels: {sparsities: {fc1: 0.7, fc2: 0.6}, allocation: local, largest: 0.95}
  - finetune: {epochs: 10, optimiser: adam, rate: 0.002}
  - entropy-penalty: {epochs: 40, strength: 0.07, rate: 0.003}
"""),
    "resnet20": Record("resnet20", "zoo:resnet20@cifar10", 269_034, """
steps:
  - entropy-penalty: {epochs: 16, strength: 0.4, rate: 0.002, bits: 4, alpha: 0.5}
"""),
}  # fmt: skip

LENET5, LENET300 = 431_080, 266_610
PUBLISHED = [
    ("published: Deep Compression, LeNet-5", LENET5, 4 * LENET5 // 39, 0.0074),
    ("published: soft weight sharing, LeNet-5", LENET5, 4 * LENET5 // 162, 0.0097),
    ("published: Oktay et al., LeNet-5", LENET5, 2_840, 0.0100),
    ("published: MIRACLE, LeNet-5", LENET5, 4 * LENET5 // 555, 0.0069),
    ("published: MIRACLE, LeNet-5", LENET5, 4 * LENET5 // 1110, 0.0096),
    ("measured earlier: the standard's coder, LeNet-5, no training", LENET5, 102_185, 0.0080),
    ("measured earlier: the standard's coder, LeNet-5, no training", LENET5, 63_461, 0.0096),
    ("measured earlier: the standard's coder, LeNet-5, no training", LENET5, 30_217, 0.1400),
    ("published: Oktay et al., LeNet-300-100", LENET300, 8_560, 0.0190),
]


@dataclass(frozen=True)
class Row:
    """One file: bytes, error on the test images, ratio to float32."""

    case: str
    bytes: int
    error: float
    ratio: float


def judged(network: str, path: Path, data: Path) -> float:
    """Error on the test images, found by a process that imports the decoder and numpy alone."""
    images = data / "mnist.npz"
    if network == "resnet20":
        images, test = OUT / "cifar10-test.npz", cifar10(data)[1]
        np.savez(images, x_test=test.pixels, y_test=test.labels)
    command = [sys.executable, str(HOME / "judge.py"), network, str(path), str(images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def stored(model: nn.Module, path: Path) -> int:
    """Writes weights and biases of all layers in their order, numbered; returns the bytes of the file."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    parts = [t.detach().numpy() for m in layers for t in (m.weight, m.bias) if t is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, {str(i): part for i, part in enumerate(parts)}, coder="mixing")


def row(case: str, path: Path, data: Path, record: Record) -> Row:
    """What a file on disk is worth."""
    size = path.stat().st_size
    error = judged(record.network, path, data)
    return Row(case, size, error, round(4 * record.parameters / size, 1))


def untrained(record: Record, data: Path, rates: list[float]) -> list[Row]:
    """A trained network as it is, and rounded at several rates without training."""
    name = {"lenet5": "LeNet-5", "resnet20": "ResNet-20"}[record.network]
    task = record.task(data)
    model = load_model(record.source).eval()
    fold_batch_norms(model, task.example)
    path = OUT / f"{record.network}-float32.rfy"
    stored(model, path)
    rows = [row(f"{name}, float32, lossless", path, data, record)]
    for rate in rates:
        context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {})
        found, _ = apply_step(RateDistortion(bits=rate), copy.deepcopy(model), context)
        path = OUT / f"{record.network}-{rate:g}.rfy"
        stored(found, path)
        rows.append(row(f"{name}, no training, {rate:g} bits a weight", path, data, record))
    return rows


@torch.no_grad()
def absorb_biases(model: Any) -> None:
    """LeNet-5 without biases of convolutions: no padding and no ReLU keeps them from fc1, exactly."""
    shift = model.conv2.bias + model.conv2.weight.sum(dim=(2, 3)) @ model.conv1.bias
    places = model.fc1.weight.unflatten(1, (len(shift), -1)).sum(dim=2)
    model.fc1.bias += places @ shift
    model.conv1.bias = model.conv2.bias = None


def train(name: str, data: Path) -> None:
    """Makes one of the trained files, resuming what was interrupted; prints the held-back error."""
    made, task = TRAINED[name], TRAINED[name].task(data)
    torch.manual_seed(0)
    model = load_model(made.source)
    teacher = copy.deepcopy(model).eval()
    if made.absorbed:
        absorb_biases(model)
    for number, step in enumerate(Recipe.from_yaml(made.recipe).steps):
        record: dict[str, Any] = {}
        folder = OUT / f"{name}.work" / str(number)
        context = Context(task, teacher, torch.device("cpu"), 0, record, folder)
        model, _ = apply_step(step, model, context)
        print(name, step.key(), json.dumps(record.get("bits", {})), file=sys.stderr)
    print("held-back accuracy", evaluate(model, task, "validation").value, file=sys.stderr)
    print(name, stored(model, KEPT / f"{name}.rfy"), "bytes", file=sys.stderr)


def show(item: Row) -> str:
    """One line of the table."""
    return f"{item.case:60} {item.bytes:12,} {100 * item.error:7.2f} % {item.ratio:8.1f}x"


def plot(rows: list[Row], path: Path) -> None:
    """Bytes of LeNet-5 against its error, a page with one chart."""
    from plotly import graph_objects as go

    kinds = {
        "rarefy, no training": "LeNet-5, no training",
        "rarefy, trained": "lenet5-",
        "published": "published:",
        "the NNC standard's coder, no training": "measured earlier:",
    }
    chart = go.Figure()
    for kind, begins in kinds.items():
        found = [r for r in rows if r.case.startswith(begins) and "LeNet-300" not in r.case]
        chart.add_scatter(
            x=[r.bytes for r in found],
            y=[100 * r.error for r in found],
            text=[r.case for r in found],
            mode="markers" if kind == "published" else "lines+markers",
            name=kind,
        )
    chart.update_layout(title="LeNet-5 on MNIST, whole files", template="plotly_white")
    chart.update_xaxes(title="bytes (logarithmic)", type="log")
    chart.update_yaxes(title="error on 10,000 test images, % (logarithmic)", type="log")
    path.write_text(chart.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")


def main() -> None:
    """Print the table, or train one of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--rates", type=float, nargs="*", default=[2.0, 1.0, 0.6, 0.5, 0.4])
    parser.add_argument("--resnet-rates", type=float, nargs="*", default=[3.0, 2.0])
    parser.add_argument("--train", choices=sorted(TRAINED))
    parser.add_argument("--plot", type=Path, help="an .html file: bytes of LeNet-5 against error")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    data = Path(options.data)
    if options.train:
        train(options.train, data)
        return
    rows = untrained(TRAINED["lenet5-3000"], data, options.rates)
    rows += untrained(TRAINED["resnet20"], data, options.resnet_rates)
    rows += [row(name, KEPT / f"{name}.rfy", data, record) for name, record in TRAINED.items()]
    rows += [Row(case, size, error, round(4 * n / size, 1)) for case, n, size, error in PUBLISHED]
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        json.dump([asdict(item) for item in rows], sys.stdout, indent=1)
        print()
        return
    print(f"{'case':60} {'bytes':>12} {'error':>9} {'ratio':>9}")
    for item in rows:
        print(show(item))


if __name__ == "__main__":
    main()
