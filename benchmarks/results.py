# SPDX-License-Identifier: Apache-2.0
"""The table of the README: trained reference networks through named recipes, everything on real data.

    python benchmarks/results.py --data DIR [--out DIR] [--only NAME ...]

DIR holds ``mnist.npz`` and the JPEG arrays of CIFAR-10 (see `rarefy.zoo.datasets` for the formats). The
networks are the ones that ship with the package. Results are kept under ``--out``, so that a second call
prints the same table from finished stages. Sizes are whole files; latency is of a batch of one in ONNX
Runtime, interleaved with the baseline, as a factor with quartiles.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
CASES = {
    "lenet5-deep-compression": ("zoo:lenet5@mnist", "mnist:{data}/mnist.npz", "deep-compression"),
    "lenet5-int8": ("zoo:lenet5@mnist", "mnist:{data}/mnist.npz", "int8"),
    "resnet20-small": (
        "zoo:resnet20@cifar10",
        "cifar10:{data}",
        str(EXAMPLES / "resnet20-cifar10.yaml"),
    ),
    "resnet20-int8": ("zoo:resnet20@cifar10", "cifar10:{data}", "int8"),
}


def run(case: str, data: Path, out: Path) -> Path:
    """Compresses one case through the command line, in a process of its own."""
    model, task, recipe = CASES[case]
    folder = out / case
    command = ["compress", model, task.format(data=data), "--recipe", recipe, "--out", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "rarefy", *command], check=True, stdout=subprocess.DEVNULL
    )
    return folder


def row(case: str, folder: Path) -> str:
    """One line of the table, in Markdown."""
    document = json.loads((folder / "measurements.json").read_text())
    before, after = document["stages"][0], document["stages"][-1]
    full, onnx = before["bytes"]["safetensors"], before["bytes"]["onnx"]
    small = (folder / "model.rfy").stat().st_size
    runtime = (folder / "model.onnx").stat().st_size
    latency = after["latency_ms"]
    low, high = sorted(1 / r for r in latency["ratio_iqr"])
    metric = [stage["metric"]["value"] for stage in (before, after)]
    return (
        f"| {document['model']} | {Path(CASES[case][2]).stem} | {metric[0]:.2%} → {metric[1]:.2%} "
        f"| {full:,} → {small:,} ({full / small:.1f}×) | {runtime / onnx:.3f} "
        f"| {1 / latency['ratio_to_baseline']:.2f}× ({low:.2f}–{high:.2f}) |"
    )


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--out", type=Path, default=Path("out/results"))
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=list(CASES))
    given = parser.parse_args()
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    print("| network | recipe | accuracy (test, through ONNX Runtime after) | bytes: weights → .rfy "
          "| .onnx against float32 | faster |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- |")
    for case in given.only:
        print(row(case, run(case, given.data, given.out)), flush=True)


if __name__ == "__main__":
    main()
