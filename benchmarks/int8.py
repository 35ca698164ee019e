# SPDX-License-Identifier: Apache-2.0
"""Int8 of EfficientNet-Lite0: ours beside ONNX Runtime's quantiser and, if it is installed, NNCF.

    python benchmarks/int8.py [--data DIR] [--images N] [--calibration N] [--rounds N]

DIR holds the images that ``examples/efficientnet_lite0.py`` names. All quantisers see the same calibration
images and all files the same test images. Latencies are medians of processor time on one thread, interleaved,
as factors against the float32 file in ONNX Runtime; OpenVINO computes floats in float32 and is told the
sizes of the images before it compiles. NNCF is no dependency: ``PYTHONPATH=DIR`` behind
``pip install --target DIR --no-deps nncf ninja "pydot<=4.0.1" pyparsing tabulate`` is enough.

Every file is opened as its own tool's users would open it. On x86 without VNNI, ONNX Runtime then cuts off
sums of two products at 16 bits. Files that this may happen to are measured a second time with the session
option that prevents it (``session.x64quantprecision``), which is slower: rows "onnxruntime, exact". Ours
never need it.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from rarefy.export.lint import lint
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.overflow import could_saturate
from rarefy.export.runner import Runner
from rarefy.export.runtimes import open_program
from rarefy.measure.latency import latency
from rarefy.quantize.static_int8 import StaticInt8
from rarefy.step import Context
from rarefy.store.pack import pack
from rarefy.task import Task
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task

REFERENCE = "float32 | onnxruntime"
EXACT = "onnxruntime, exact"
EXAMPLE = Path(__file__).parents[1] / "examples" / "efficientnet_lite0.py"


@dataclass(frozen=True)
class Row:
    """A quantised file and how it was made.

    Attributes:
        name: of the quantiser.
        path: of the file.
        runtimes: in which it is measured.
        seconds: processor time of quantising, without reading images.
    """

    name: str
    path: Path
    runtimes: tuple[str, ...]
    seconds: float


def example(
    data: str | None, count: int
) -> tuple[torch.nn.Module, Task, torch.Tensor, torch.Tensor]:
    """The trained network, its task, and the first test images with their labels."""
    if data:
        os.environ["RAREFY_DATA"] = data
    model, task = load_model(f"{EXAMPLE}:model"), load_task(f"{EXAMPLE}:task")
    images, labels = (torch.cat(part) for part in zip(*task.batches("test"), strict=True))
    return model, task, images[:count], labels[:count]


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the processor seconds that it took."""
    started = time.process_time()
    return make(), time.process_time() - started


def ours(model: torch.nn.Module, task: Task, runtime: str, path: Path) -> Row:
    """Static int8 as it is by default."""
    context = Context(task, model, torch.device("cpu"), runtime=runtime)
    found, seconds = timed(lambda: StaticInt8().apply(copy.deepcopy(model), context))
    save_onnx(export_onnx(found, task.example, runtime=runtime), path)
    return Row(f"rarefy for {runtime}", path, (runtime,), seconds)


def of_onnxruntime(source: Path, images: list[torch.Tensor], path: Path, signed: bool) -> Row:
    """ONNX Runtime's static quantiser, one scale for each channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[torch.Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {"x": image.numpy()}

    kind = QuantType.QInt8 if signed else QuantType.QUInt8
    _, seconds = timed(
        lambda: quantize_static(
            str(source), str(path), Reader(), per_channel=True, activation_type=kind,
            weight_type=QuantType.QInt8,
        )
    )  # fmt: skip
    return Row(f"quantize_static {'S8S8' if signed else 'U8S8'}", path, ("onnxruntime",), seconds)


def of_nncf(source: Path, images: list[torch.Tensor], folder: Path) -> list[Row]:
    """NNCF's quantiser of OpenVINO models and of ONNX files; none where it is not installed."""
    try:
        import nncf
        import onnx
        import openvino
    except ImportError as error:
        print(f"(no NNCF: {error})", file=sys.stderr)
        return []
    rows = []
    for native in (True, False):
        path = folder / ("nncf.xml" if native else "nncf.onnx")
        model = openvino.Core().read_model(source) if native else onnx.load(str(source))
        data = nncf.Dataset(images, lambda image: {"x": image.numpy()})
        found, seconds = timed(lambda: nncf.quantize(model, data, subset_size=len(images)))
        if native:
            openvino.save_model(found, str(path))
            rows.append(Row("NNCF, OpenVINO model", path, ("openvino",), seconds))
        else:
            save_onnx(found, path)
            rows.append(Row("NNCF, ONNX", path, ("onnxruntime", "openvino"), seconds))
    return rows


def opened(path: Path, label: str) -> Runner:
    """A file in a runtime as its users would open it, or exactly."""
    if label in ("onnxruntime", EXACT):
        return OnnxRuntime(path, threads=1, exact=label == EXACT)
    return open_program(path, label, threads=1)


def labels_of(row: Row) -> list[str]:
    """The runtimes that a file is measured in, and exactly where sums could overflow."""
    labels = list(row.runtimes)
    if "onnxruntime" in labels and could_saturate(row.path):
        labels.insert(labels.index("onnxruntime") + 1, EXACT)
    return labels


def coded(path: Path) -> str:
    """The bytes of the packed file; empty for what is no ONNX file."""
    return f"{pack(path, path.with_suffix('.rfy')):,}" if path.suffix == ".onnx" else ""


def bytes_of(path: Path) -> int:
    """The bytes of a file, and of the weights that an OpenVINO model has beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" else 0)


def in_int8(path: Path, runtime: str) -> str:
    """How many convolutions and products run in integers; empty for what the linter can't read."""
    if path.suffix != ".onnx":
        return ""
    products = lint(path, runtime)
    return f"{sum(p.integer for p in products)}/{len(products)}"


def answers(runner: Runner, images: torch.Tensor) -> torch.Tensor:
    """The outputs for all images."""
    return torch.cat([runner(part) for part in images.split(10)])


def main() -> None:
    """Quantises, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--images", type=int, default=650)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    torch.set_num_threads(1)
    model, task, images, labels = example(given.data, given.images)
    seen = torch.cat([x for x, _ in task.batches("calibration")])[: given.calibration]
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        full = folder / "float.onnx"
        save_onnx(export_onnx(model, task.example), full)
        singles = list(seen.split(1))
        rows = [
            ours(model, task, "onnxruntime", folder / "ours.onnx"),
            ours(model, task, "openvino", folder / "ours-openvino.onnx"),
            of_onnxruntime(full, singles, folder / "u8s8.onnx", signed=False),
            of_onnxruntime(full, singles, folder / "s8s8.onnx", signed=True),
            *of_nncf(full, singles, folder),
        ]
        table(rows, full, images, labels, given.rounds)


def table(
    rows: list[Row], full: Path, images: torch.Tensor, labels: torch.Tensor, rounds: int
) -> None:
    """Opens every file in its runtimes, compares answers, times all side by side, prints."""
    floats = Row("float32", full, ("onnxruntime", "openvino"), 0.0)
    runners = {
        f"{row.name} | {label}": opened(row.path, label)
        for row in (floats, *rows)
        for label in labels_of(row)
    }
    times = {}
    for batch in (1, 8):
        ready = {name: runner.fixed(images[:batch]) for name, runner in runners.items()}
        times[batch] = latency(ready, images[:batch], rounds=rounds, threads=1, budget=600)
    exact = answers(runners[REFERENCE], images)
    top1 = float((exact.argmax(1) == labels).float().mean())
    print(f"float32: top-1 {top1:.2%} on {len(labels)} images, {full.stat().st_size:,} bytes")
    print("| quantiser | runtime | top-1 loss | agreement | file | .rfy | seconds | in int8 "
          "| faster, batch 1 | batch 8 |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    known = {row.name: row for row in rows}
    for label, runner in runners.items():
        name, runtime = label.split(" | ")
        factors = [times[b][REFERENCE].cpu_median / times[b][label].cpu_median for b in (1, 8)]
        if name not in known:
            print(f"| float32 | {runtime} | | | | | | | {factors[0]:.2f} | {factors[1]:.2f} |")
            continue
        found, row = answers(runner, images), known[name]
        lost = top1 - float((found.argmax(1) == labels).float().mean())
        same = float((found.argmax(1) == exact.argmax(1)).float().mean())
        print(
            f"| {name} | {runtime} | {100 * lost:.2f} | {same:.2%} | {bytes_of(row.path):,} "
            f"| {coded(row.path)} | {row.seconds:.1f} | {in_int8(row.path, runtime.split(',')[0])} "
            f"| {factors[0]:.2f} | {factors[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
