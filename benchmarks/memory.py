# SPDX-License-Identifier: Apache-2.0
"""How much memory `compress` needs without training, phase by phase, in multiples of the model.

    python benchmarks/memory.py [--json] [--exact] [CASE ...]

Every case runs in a process of its own, which first compresses a tiny network by the same recipe, so that
all libraries are loaded and their own memory counts for nothing. Then it makes the model and compresses it,
while another process reads its ``/proc`` entry every half millisecond. Stated for each phase is

    (most memory during the phase - memory before the model was made) / bytes of the model's tensors,

so the model itself, which the caller holds all the time, counts as 1. ``anonymous`` is memory that only the
swap could take over, and the figure that has to stay below 3. ``resident`` counts mapped pages of files
too, which the kernel drops whenever it needs their place. The activations of a call are part of both.

The C library keeps up to 64 MB of what was freed for later use (twice the size of the blocks that it maps one
by one, 32 MB at most), which weighs on small models. With ``--exact`` it gives back every block of a quarter
megabyte at once, so that only what is needed is seen. On Linux with glibc only.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STEPS = {
    "prune-weights global": "prune-weights: {sparsity: 0.8}",
    "prune-weights local": "prune-weights: {sparsity: 0.8, allocation: local}",
    "prune-weights lamp": "prune-weights: {sparsity: 0.8, allocation: lamp}",
    "prune-weights 4x1": "prune-weights: {sparsity: 0.8, granularity: 4x1}",
    "share-weights": "share-weights: {bits: 4, epochs: 0, initialisation: linear}",
    "static-int8": "static-int8",
    "half-precision": "half-precision",
    "fixed-point": "fixed-point",
    "pruned int8": "prune-weights: {sparsity: 0.8}, static-int8",
}
MODELS = ("mlp", "resnet50", "small")
PHASES = {
    "rarefy.compress": ("check", "model_key", "apply_step", "evaluate", "Evidence.document"),
    "rarefy.export.artefact": (
        "Artefact.make", "Artefact.seal", "write_program", "pack", "write_onnx", "export_onnx",
        "save_onnx", "save_file", "hash_file",
    ),
    "rarefy.measure.evidence": (
        "OnnxRuntime", "check_parity", "evaluate", "peak_memory", "Evidence.time",
        "Evidence.layer_table",
    ),
    "rarefy.store.stages": ("Stage.save", "Stage.load"),
}  # fmt: skip
PAGE, SHOWN = 4096, 8


def network(name: str) -> Any:
    """A network in eval mode whose tensors lie in memory, the tiny ones apart, and its task."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    import rarefy as rf

    torch.manual_seed(0)
    if name in ("mlp", "small"):
        sizes, shape = (3072, 4096, 4096, 2048, 100), (3072,)
        if name == "small":
            sizes = (3072, 1792, 1792, 1792, 100)
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        model: Any = nn.Sequential(*[part for pair in layers for part in pair][:-1])
    elif name == "resnet50":
        import torchvision

        model, shape = torchvision.models.resnet50(weights=None), (3, 64, 64)
    else:
        shape = (3, 16, 16)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(8 * 14 * 14, 10))
    inputs = DataLoader(torch.randn(32, *shape), batch_size=8)  # type: ignore[arg-type]
    task = rf.Task(
        "noise", torch.randn(1, *shape), validation=inputs, calibration=inputs, labelled=False
    )
    return model.eval(), task


def child(model: str, step: str, board: Path) -> None:
    """Compresses a network and tells on `board` what it is doing."""
    import rarefy as rf
    import rarefy.search.compress
    from rarefy.recipe import Recipe

    recipe = Recipe.from_yaml(f"steps: [{step}]")
    rf.compress(*network("tiny"), recipe)

    stack: list[str] = []

    def tell(phase: str) -> None:
        partial = board.with_suffix(".partial")
        partial.write_text(phase)
        partial.replace(board)

    def told(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            stack.append(name)
            tell(" / ".join(stack))
            try:
                return function(*args, **kwargs)
            finally:
                stack.pop()
                tell(" / ".join(stack) or "elsewhere")

        return run

    for module, names in PHASES.items():
        for name in names:
            *path, last = name.split(".")
            holder: Any = sys.modules[module]
            for part in path:
                holder = getattr(holder, part)
            if hasattr(holder, last):  # an earlier version may lack it
                setattr(holder, last, told(last, getattr(holder, last)))

    tell("base")
    time.sleep(0.2)
    net, task = network(model)
    size = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    tell("made")
    time.sleep(0.2)
    started = time.perf_counter()
    tell("elsewhere")
    result = rf.compress(net, task, recipe)
    took = time.perf_counter() - started
    tell("end")
    time.sleep(0.1)
    print(json.dumps({"bytes": size, "seconds": took, "stages": len(result.measurements)}))


def watch(model: str, step: str, exact: bool) -> dict[str, Any]:
    """The most memory of each phase of a case, above the level before the model was made."""
    setting = {"MALLOC_MMAP_THRESHOLD_": str(2**18)} if exact else {}
    with TemporaryDirectory() as folder:
        board = Path(folder) / "phase"
        command = [sys.executable, __file__, "--child", model, step, str(board)]
        environment = {**os.environ, **setting}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        most: dict[str, tuple[int, int]] = {}
        place = Path(f"/proc/{process.pid}/statm")
        while process.poll() is None:
            try:
                phase = board.read_text()
                resident, shared = (int(field) * PAGE for field in place.read_text().split()[1:3])
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue
            anonymous, whole = most.get(phase, (0, 0))
            most[phase] = max(anonymous, resident - shared), max(whole, resident)
            time.sleep(0.0005)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{model}, {step}: the process ended with {process.returncode}")
    facts = json.loads(output.splitlines()[-1])
    base = most.pop("base")
    size = facts["bytes"]
    rows = [
        {"phase": phase, "anonymous": (a - base[0]) / size, "resident": (r - base[1]) / size}
        for phase, (a, r) in most.items()
    ]
    return {"model": model, "step": step, **facts, "phases": rows}


def main() -> None:
    """Prints the tables."""
    arguments = [a for a in sys.argv[1:] if a not in ("--json", "--exact")]
    if arguments[:1] == ["--child"]:
        child(arguments[1], arguments[2], Path(arguments[3]))
        return
    cases = [f"{model} {name}" for model in MODELS for name in STEPS]
    wanted = [case for case in cases if not arguments or any(a in case for a in arguments)]
    found = []
    for case in wanted:
        model, _, name = case.partition(" ")
        result = watch(model, STEPS[name], "--exact" in sys.argv)
        found.append({"case": case, **result})
        if "--json" not in sys.argv:
            show(found[-1])
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))


def show(case: dict[str, Any]) -> None:
    """Prints one case, phases in the order of their memory."""
    rows = sorted(case["phases"], key=lambda row: -row["anonymous"])
    anonymous, resident = (max(row[k] for row in rows) for k in ("anonymous", "resident"))
    print(f"{case['case']}: {case['bytes'] / 1e6:.0f} MB, {case['seconds']:.0f} s")
    print(f"    {'anonymous':>9} {'resident':>9}")
    print(f"    {anonymous:9.2f} {resident:9.2f}  all of it")
    for row in rows[:SHOWN]:
        print(f"    {row['anonymous']:9.2f} {row['resident']:9.2f}  {row['phase']}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
