# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits without labels: EfficientNet-Lite0, rounded to the nearest and reconstructed by blocks.

    python benchmarks/reconstruction.py [--data DIR] [--bits 4] [--iterations 0 200 600] [--images N]
                                        [--out DIR]

DIR holds the images that ``examples/efficientnet_lite0.py`` names; 128 of them calibrate, and their labels
are not looked at. Inner weights have few bits, activations 8, the first and the last layer 8. Accuracy,
agreement with the float network and the bytes of the coded file are those of the exported file in ONNX
Runtime.
"""

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from int8 import answers, example

from rarefy.compress import apply_step
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.quantize.reconstruct import Reconstruct
from rarefy.step import Context
from rarefy.store.pack import pack


def main() -> None:
    """Prints a row for every number of iterations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--iterations", type=int, nargs="*", default=[0, 200, 600])
    parser.add_argument("--images", type=int, default=650)
    parser.add_argument("--out", type=Path, help="keeps the exported files")
    given = parser.parse_args()
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    torch.set_num_threads(1)
    model, task, images, labels = example(given.data, given.images)
    with tempfile.TemporaryDirectory() as made:
        folder = given.out or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "float.onnx"
        save_onnx(export_onnx(model, task.example), path)
        exact = answers(OnnxRuntime(path, threads=1), images).argmax(1)
        top1 = float((exact == labels).float().mean())
        print(f"float32: top-1 {top1:.2%} on {len(labels)} images\n")
        print("| iterations | top-1 loss | agreement | .rfy | processor seconds |")
        print("| --- | --- | --- | --- | --- |")
        for count in given.iterations:
            step = Reconstruct(bits=given.bits, iterations=count)
            context = Context(task, model, torch.device("cpu"))
            started = time.process_time()
            found, _ = apply_step(step, copy.deepcopy(model), context)
            seconds = time.process_time() - started
            path = folder / f"w{given.bits}-{count}.onnx"
            save_onnx(export_onnx(found, task.example), path)
            size = pack(path, path.with_suffix(".rfy"))
            got = answers(OnnxRuntime(path, threads=1), images).argmax(1)
            lost = 100 * (top1 - float((got == labels).float().mean()))
            same = float((got == exact).float().mean())
            print(
                f"| {count or 'none, nearest'} | {lost:.2f} | {same:.2%} | {size:,} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
