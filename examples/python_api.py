# SPDX-License-Identifier: Apache-2.0
"""The whole way in Python: a trained network, three steps, a folder with files and a report."""

import sys
from pathlib import Path

import torch

import rarefy as rf
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.zoo.lenet import DigitsNet
from rarefy.zoo.tasks import load_task


def main(out: Path) -> rf.Result:
    """Trains, compresses, saves and prints what came of it."""
    torch.manual_seed(0)
    task = load_task("digits")
    model = fit(DigitsNet(), task, Training(epochs=12, rate=0.05))  # or a trained network of yours

    recipe = [
        rf.PruneWeights(sparsity=0.8),
        rf.Distill(epochs=4),
        rf.ShareWeights(bits=4, epochs=2),
    ]
    result = rf.compress(model, task, recipe, budget=rf.Budget(size=1 / 8, metric_drop=0.03))

    before, after = result.measurements[0], result.measurements[-1]
    print(f"accuracy {before['metric']['value']:.3f} -> {after['metric']['value']:.3f}")
    print(f"bytes {before['bytes']['safetensors']:,} -> {after['bytes']['rfy']:,}")
    print("the budget was met" if result.met else "the budget was not met")
    print(f"report: {result.save(out) / 'report.html'}")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/python"))
