# SPDX-License-Identifier: Apache-2.0
"""The smallest files at a given error: what rarefy writes, beside what was published.

    python benchmarks/records.py --mnist shared/data/mnist.npz [--rates 2 1 0.6 0.5 0.4] [--json]
    python benchmarks/records.py --mnist shared/data/mnist.npz --train lenet5-3000

Every file is counted whole and judged in a fresh process that imports the decoder alone: it reads the
file, builds the network from the shapes of its tensors and runs the test images. Rows without training
are made here and now. Rows with training are made by `--train`, one at a time, and kept in out/records;
a row that has not been trained says so. Choices are made on held-back training images.
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

import torch
from torch import nn

from rarefy.compress import apply_step
from rarefy.measure.quality import evaluate
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.recipe import Recipe
from rarefy.step import Context
from rarefy.store.rfy import write
from rarefy.task import Task
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task

OUT = Path(__file__).parents[1] / "out" / "records"
NAMES = [
    f"{layer}.{part}" for layer in ("conv1", "conv2", "fc1", "fc2") for part in ("weight", "bias")
]

JUDGE = """
import sys
import numpy as np
from rarefy.store.rfy import read
assert "torch" not in sys.modules
with read(sys.argv[1]) as archive:
    c1, b1, c2, b2, w3, b3, w4, b4 = (archive[name].astype(np.float32) for name in archive)
with np.load(sys.argv[2], allow_pickle=False) as data:
    images, labels = data["x_test"], data["y_test"]

def conv(x, w, b):
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    y = np.tensordot(windows, w, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    y = y + b[:, None, None]
    return y.reshape(*y.shape[:2], y.shape[2] // 2, 2, y.shape[3] // 2, 2).max(axis=(3, 5))

wrong = 0
for start in range(0, len(images), 500):
    x = (images[start : start + 500].astype(np.float32) / 255 - 0.1307) / 0.3081
    x = conv(conv(x[:, None], c1, b1), c2, b2)
    x = np.maximum(x.reshape(len(x), -1) @ w3.T + b3, 0) @ w4.T + b4
    wrong += int((x.argmax(axis=1) != labels[start : start + 500]).sum())
print(wrong / len(images))
"""

TRAINED = {
    "lenet5-3000": """
steps:
  - prune-channels: {sparsities: {conv1: 0.6, conv2: 0.68, fc1: 0.872}, allocation: local, largest: 0.95}
  - finetune: {epochs: 20, optimiser: adam, rate: 0.002}
  - entropy-penalty: {epochs: 90, strength: 0.03, rate: 0.003}
""",
    "lenet5-1150": """
steps:
  - prune-channels: {sparsities: {conv1: 0.6, conv2: 0.68, fc1: 0.92}, allocation: local, largest: 0.95}
  - finetune: {epochs: 30, optimiser: adam, rate: 0.002}
  - entropy-penalty: {epochs: 100, strength: 0.12, rate: 0.003, bits: 4}
""",
}

PUBLISHED = [
    ("published: Deep Compression, LeNet-5", 1_724_320 // 39, 0.0074),
    ("published: soft weight sharing, LeNet-5", 1_724_320 // 162, 0.0097),
    ("published: Oktay et al., LeNet-5", 2_840, 0.0100),
    ("published: MIRACLE, LeNet-5", 1_724_320 // 555, 0.0069),
    ("published: MIRACLE, LeNet-5", 1_724_320 // 1110, 0.0096),
    ("measured earlier: the standard's coder, no training", 102_185, 0.0080),
    ("measured earlier: the standard's coder, no training", 63_461, 0.0096),
    ("measured earlier: the standard's coder, no training", 30_217, 0.1400),
]


@dataclass(frozen=True)
class Row:
    """One file: bytes, error on the test images (None if it was not made), ratio to float32."""

    case: str
    bytes: int | None
    error: float | None
    ratio: float | None


def judged(path: Path, mnist: str) -> float:
    """Error on the test images, found by a process that imports the decoder and numpy alone."""
    command = [sys.executable, "-c", JUDGE, str(path), mnist]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def stored(model: nn.Module, path: Path) -> int:
    """Writes a LeNet-5's tensors in their order, numbered; returns the bytes of the file."""
    tensors = {}
    for number, name in enumerate(NAMES):
        module, _, part = name.rpartition(".")
        tensors[str(number)] = getattr(model.get_submodule(module), part).detach().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, tensors, coder="mixing")


def row(case: str, path: Path, mnist: str, parameters: int) -> Row:
    """What a file on disk is worth."""
    size = path.stat().st_size
    return Row(case, size, judged(path, mnist), round(4 * parameters / size, 1))


def untrained(task: Task, mnist: str, rates: list[float]) -> list[Row]:
    """The shipped LeNet-5 as it is, and rounded at several rates without training."""
    model = load_model("zoo:lenet5@mnist")
    parameters = sum(p.numel() for p in model.parameters())
    stored(model, OUT / "float32.rfy")
    rows = [row("LeNet-5, float32, lossless", OUT / "float32.rfy", mnist, parameters)]
    for rate in rates:
        context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0, {})
        found, _ = apply_step(RateDistortion(bits=rate), copy.deepcopy(model), context)
        path = OUT / f"rate-{rate:g}.rfy"
        stored(found, path)
        rows.append(row(f"LeNet-5, no training, {rate:g} bits a weight", path, mnist, parameters))
    return rows


def train(name: str, task: Task) -> None:
    """Makes one of the trained files, resuming what was interrupted; prints the held-back error."""
    model = load_model("zoo:lenet5@mnist")
    teacher = copy.deepcopy(model).eval()
    for number, step in enumerate(Recipe.from_yaml(TRAINED[name]).steps):
        record: dict[str, Any] = {}
        folder = OUT / f"{name}.work" / str(number)
        context = Context(task, teacher, torch.device("cpu"), 0, record, folder)
        model, _ = apply_step(step, model, context)
        print(name, step.key(), json.dumps(record.get("bits", {})), file=sys.stderr)
    print("held-back accuracy", evaluate(model, task, "validation").value, file=sys.stderr)
    print(name, stored(model, OUT / f"{name}.rfy"), "bytes", file=sys.stderr)


def show(item: Row) -> str:
    """One line of the table."""
    size = "not made" if item.bytes is None else f"{item.bytes:,}"
    error = "" if item.error is None else f"{100 * item.error:.2f} %"
    ratio = "" if item.ratio is None else f"{item.ratio:.1f}x"
    return f"{item.case:56} {size:>12} {error:>9} {ratio:>9}"


def main() -> None:
    """Print the table, or train one of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mnist", required=True, help="an .npz file with x_test, y_test, x_train, y_train"
    )
    parser.add_argument("--rates", type=float, nargs="*", default=[2.0, 1.0, 0.6, 0.5, 0.4])
    parser.add_argument("--train", choices=sorted(TRAINED))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(f"mnist:{options.mnist}")
    if options.train:
        train(options.train, task)
        return
    rows = untrained(task, options.mnist, options.rates)
    for name in TRAINED:
        path = OUT / f"{name}.rfy"
        made = path.is_file()
        rows.append(
            row(name, path, options.mnist, 431_080) if made else Row(name, None, None, None)
        )
    rows += [Row(case, size, error, round(1_724_320 / size, 1)) for case, size, error in PUBLISHED]
    if options.json:
        json.dump([asdict(item) for item in rows], sys.stdout, indent=1)
        print()
        return
    print(f"{'case':56} {'bytes':>12} {'error':>9} {'ratio':>9}")
    for item in rows:
        print(show(item))


if __name__ == "__main__":
    main()
