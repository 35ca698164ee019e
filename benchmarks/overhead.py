# SPDX-License-Identifier: Apache-2.0
"""What the toolkit itself costs: start-up, and bookkeeping beside training (memory: memory.py).

    python benchmarks/overhead.py [--json]

Start-up: fresh processes, interleaved. Bookkeeping: everything in `compress` that is not a step (copying,
hashing, measuring, exporting), against the time of the steps, for ResNet-20 fine-tuned on random images.
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS = 7
STARTS = {
    "import torch": "import torch",
    "import torch and rarefy's compress": "import torch, rarefy; rarefy.compress, rarefy.Task",
    "import rarefy": "import rarefy",
    "rarefy --help": "import rarefy.cli as c; c.main(['--help'])",
    "rarefy systems": "import rarefy.cli as c; c.main(['systems'])",
}


def seconds(code: str) -> float:
    """Wall seconds of a fresh process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def startup() -> list[dict[str, Any]]:
    """Start-up times with quartiles, all candidates in every round."""
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(ROUNDS):
        for name, code in STARTS.items():
            times[name].append(seconds(code))
    rows = []
    for name, found in times.items():
        low, middle, high = statistics.quantiles(found, n=4)
        rows.append({"what": name, "value": f"{middle:.2f} s", "spread": f"{low:.2f}–{high:.2f}"})
    extra = [
        b - a
        for a, b in zip(
            times["import torch"], times["import torch and rarefy's compress"], strict=True
        )
    ]
    low, middle, high = statistics.quantiles(extra, n=4)
    return [
        *rows,
        {
            "what": "extra over import torch",
            "value": f"{middle:.2f} s",
            "spread": f"{low:.2f}–{high:.2f}",
        },
    ]


def bookkeeping() -> dict[str, str]:
    """Share of a compression's time that is not spent in its steps."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import rarefy as rf
    from rarefy.zoo.models import load_model

    torch.manual_seed(0)
    model = load_model("zoo:resnet20")
    x, y = torch.randn(6400, 3, 32, 32), torch.randint(0, 10, (6400,))
    train, test = (DataLoader(TensorDataset(x[:n], y[:n]), 128) for n in (6400, 1000))
    task = rf.Task("random", x[:2], train=train, validation=test)
    steps = [rf.PruneWeights(sparsity=0.5), rf.Finetune(epochs=3)]
    started = time.perf_counter()
    result = rf.compress(model, task, steps)
    total = time.perf_counter() - started
    inside = sum(stage["seconds"] for stage in result.measurements)
    return {
        "what": "bookkeeping, and as a share of the steps",
        "value": f"{total - inside:.0f} s, {(total - inside) / inside:.0%}",
        "spread": f"{total:.0f} s in all, {inside:.0f} s in steps",
    }


def main() -> None:
    """Prints the table."""
    rows = [*startup(), bookkeeping()]
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['what']:<42} {row['value']:>10}   {row['spread']}")


if __name__ == "__main__":
    main()
