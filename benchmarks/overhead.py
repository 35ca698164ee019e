# SPDX-License-Identifier: Apache-2.0
"""What the toolkit itself costs: start-up, bookkeeping beside training, memory of a compression.

    python benchmarks/overhead.py [--json]

Start-up: fresh processes, interleaved. Bookkeeping: everything in `compress` that is not a step (copying,
hashing, measuring, exporting), against the time of the steps, for ResNet-20 fine-tuned on random images.
Memory: the highest resident memory of a process that prunes and codes a network without training, less
the memory before, as a multiple of the network.
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
MEMORY = """
import resource, threading, time, torch, rarefy
from torch import nn
from rarefy.zoo.tasks import load_task
import rarefy.compress, rarefy.search.compress, onnxruntime
import torchvision
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
with torch.device("cpu"):
    model = torchvision.models.vgg11(weights=None).eval()
task = load_task("random-images")
model(task.example)
size = sum(p.numel() * 4 for p in model.parameters())
high, going = [resident()], [True]
def sample():
    while going[0]:
        high[0] = max(high[0], resident()); time.sleep(0.01)
before = resident() - size
thread = threading.Thread(target=sample); thread.start()
rarefy.compress(model, task, rarefy.Recipe.from_yaml("steps: [prune-weights: {sparsity: 0.8}]"))
going[0] = False; thread.join()
print((high[0] - before) / size)
"""


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
        "what": "bookkeeping, share of the steps' time",
        "value": f"{(total - inside) / inside:.1%}",
        "spread": f"{total:.0f} s in all, {inside:.0f} s in steps",
    }


def memory() -> dict[str, str]:
    """Peak memory of a compression without training, in multiples of the network (531 MB)."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    )
    return {
        "what": "peak memory, multiples of the model",
        "value": f"{float(done.stdout):.2f}",
        "spread": "vgg11",
    }


def main() -> None:
    """Prints the table."""
    rows = [*startup(), bookkeeping(), memory()]
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['what']:<42} {row['value']:>10}   {row['spread']}")


if __name__ == "__main__":
    main()
