# SPDX-License-Identifier: Apache-2.0
"""Which networks shrink: half of the coupled channels of every model of torchvision, timm and transformers.

    python benchmarks/architectures.py [torchvision[/TASK]|timm|transformers|NAME …] [--export] [--resume]

TASK is classification, segmentation, detection, video or optical_flow.

Each model runs in a process of its own, which has a limit of CPU time. It passes if half of its channels go
and it then runs, keeps its output's shapes, has at least a quarter fewer parameters, was proven against the
zeroed network and trains one step; with --export what gives one table of logits must also agree with ONNX
Runtime. Weights are random; the training step takes two images, everything else the first.
The last columns are CPU seconds of one core for finding the groups, and for finding, proving and cutting.
timm and transformers are found if they are installed. Rows are kept in .cache/coverage; with --resume a
model that has one there is not run again.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from networks import build, sets_of

CACHE = Path(".cache/coverage")


def detector(name: str) -> bool:
    """Whether a model finds boxes: it wants lists of images, and targets in training."""
    return "rcnn" in name or name.split(":")[1].startswith(("fcos", "retinanet", "ssd"))


def floats(result: Any) -> list[Any]:
    """The floating-point tensors of a result."""
    from rarefy.task import tensors_of

    return [t for t in tensors_of(result) if t.is_floating_point()]


def train_once(model: Any, example: Any, name: str) -> None:
    """One step of SGD on the mean square of all outputs."""
    import torch

    from rarefy.task import call

    model.train()
    if detector(name):
        target = {"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]]), "labels": torch.tensor([1])}
        if "maskrcnn" in name:
            target["masks"] = torch.ones(1, 160, 160, dtype=torch.uint8)
        if "keypointrcnn" in name:
            target["keypoints"] = torch.full((1, 17, 3), 50.0)
        result = list(model(*example, [target] * 2).values())
    else:
        result = call(model, example)
    loss = sum(t.square().mean() for t in floats(result))
    loss.backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()


def judge(name: str, export: bool) -> dict[str, Any]:
    """What becomes of one model."""
    import torch

    from rarefy.graph.coupling import couple
    from rarefy.graph.proof import cut
    from rarefy.task import call, first_example, tensors_of

    torch.set_num_threads(1)
    model, several = build(name)
    example = first_example(several) if isinstance(several, torch.Tensor) else several
    model.eval()
    with torch.no_grad():
        shapes = [tuple(t.shape) for t in tensors_of(call(model, example))]
    before = sum(p.numel() for p in model.parameters())
    started = time.process_time()
    coupling = couple(model, example)
    looked = time.process_time() - started
    counts = coupling.even({g.name: g.size // 2 for g in coupling.groups})
    cuts = [
        (coupling.group(k), torch.randperm(coupling.group(k).size)[:n]) for k, n in counts.items()
    ]
    outcome = cut(model, coupling, cuts, example)
    took = time.process_time() - started
    after = sum(p.numel() for p in model.parameters())
    row = {
        "model": name, "groups": len(coupling.groups), "cut": len(outcome.cut), "share": after / before,
        "look": looked, "seconds": took, "barriers": coupling.barriers, "spared": outcome.spared,
    }  # fmt: skip
    with torch.no_grad():
        found = [tuple(t.shape) for t in tensors_of(call(model.eval(), example))]
    if detector(name):  # how many boxes there are depends on the weights
        shapes, found = [s[1:] for s in shapes], [s[1:] for s in found]
    if found != shapes:
        return row | {"failure": f"outputs of shape {found}, not {shapes}"}
    if after / before > 0.75:
        return row | {"failure": "less than a quarter of the parameters gone"}
    if export and [len(s) for s in shapes] == [2]:
        more_time()
        from rarefy.export.onnx import export_onnx
        from rarefy.export.parity import check_parity

        parity = check_parity(
            model.eval(), export_onnx(model, example).SerializeToString(), [example]
        )
        row["exported"] = parity.passed
        if not parity.passed:
            return row | {"failure": f"ONNX Runtime is off by {parity.max_relative:.2g}"}
    train_once(model, several, name)
    return row | {"failure": None}


def load(library: str, export: bool) -> None:
    """Loads what a model's process needs once, in the parent."""
    needed = ["torch._dynamo", "rarefy.graph.proof", library]
    for each in [*needed, *(["rarefy.export.onnx", "rarefy.export.parity"] if export else [])]:
        import_module(each)


def run(name: str, export: bool, seconds: int) -> dict[str, Any]:
    """Judges a model in a process of its own, which has so many CPU seconds."""
    load(name.partition(":")[0], export)
    forks = multiprocessing.get_context("fork")
    here, there = forks.Pipe(duplex=False)
    process = forks.Process(target=report, args=(there, name, export, seconds))
    process.start()
    there.close()
    try:
        row: dict[str, Any] = here.recv()
    except EOFError:
        row = {"model": name, "failure": ""}
    process.join()
    if row["failure"] == "":
        killed = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row["failure"] = f"not done in {seconds} s" if killed else f"exit {process.exitcode}"
    return row


def report(pipe: Any, name: str, export: bool, seconds: int) -> None:
    """Sends what becomes of a model, or the error's last line."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, 4 * seconds + 5))
    warnings.filterwarnings("ignore")
    try:
        row = judge(name, export)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        row = {"model": name, "failure": f"{type(error).__name__}: {text[:160]}"}
    pipe.send(row)


def more_time() -> None:
    """What comes now has a limit of its own."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (most - 5, most))


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a model, from an earlier run if that is wanted; it is kept for a later one."""
    place = CACHE / f"{name.replace(':', '_')}{'.export' if options.export else ''}.json"
    if options.resume and place.exists():
        row: dict[str, Any] = json.loads(place.read_text())
        return row
    row = run(name, options.export, options.seconds)
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".partial")
    partial.write_text(json.dumps(row))
    os.replace(partial, place)
    return row


def main() -> None:
    """Prints one row per model and the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=["torchvision", "timm", "transformers"])
    parser.add_argument("--export", action="store_true", help="also compare with ONNX Runtime")
    parser.add_argument("--resume", action="store_true", help="keep rows of an earlier run")
    parser.add_argument("--seconds", type=int, default=120, help="CPU seconds for each model")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for each in options.names:
        for group, names in sets_of(each).items():
            for name in names:
                row = row_of(name, options)
                found.setdefault(group, []).append(row)
                print(json.dumps(row) if options.json else line(row), flush=True)
    if not options.json:
        print(totals(found))


def totals(found: dict[str, list[dict[str, Any]]]) -> str:
    """How many of every set passed, how long they took, and what became of the others."""
    lines = ["", "| set | passed | of | exported | median s | longest s | failures |"]
    lines.append("| --- |" + " ---: |" * 5 + " --- |")
    for group, rows in found.items():
        bad = [f"{r['model'].partition(':')[2]}: {r['failure']}" for r in rows if r["failure"]]
        took = sorted(r["seconds"] for r in rows if "seconds" in r) or [0.0]
        exported = sum(bool(r.get("exported")) and not r["failure"] for r in rows)
        lines.append(
            f"| {group} | {len(rows) - len(bad)} | {len(rows)} | {exported} "
            f"| {took[len(took) // 2]:.1f} | {took[-1]:.1f} | {'; '.join(bad) or 'none'} |"
        )
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "share" not in row:
        return f"{row['model']:<48} FAILED {row['failure']}"
    verdict = "ok" if row["failure"] is None else f"FAILED {row['failure']}"
    notes = [f"{n} kept" for n in (row["spared"] or {})][:3] + list(row["barriers"])[:3]
    return (
        f"{row['model']:<48} {row['groups']:4d} groups {row['share']:5.2f} of the parameters "
        f"{row['look']:6.2f} s {row['seconds']:6.2f} s  {verdict} {'; '.join(notes)}"
    )


if __name__ == "__main__":
    main()
