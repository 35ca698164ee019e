# SPDX-License-Identifier: Apache-2.0
"""How fast the stages of a compression are in the runtime, against the baseline and against ONNX Runtime."""

from functools import partial
from pathlib import Path
from typing import Any

from rarefy.batches import mapped
from rarefy.export.runner import Runner
from rarefy.export.runtimes import THROUGHOUT, open_program
from rarefy.measure.latency import Latency, latency_in_turns
from rarefy.task import Inputs, first_example

TOGETHER = 2**26  # bytes of programs that may be loaded at once to be timed side by side
ALL = 2**30  # bytes of programs of which each is timed; of more the first and the last
TURNS = 3
REFERENCE = "onnxruntime"  # that every ratio between runtimes is told against
BATCH = 8  # the second size at which integer results are timed


def time_stages(
    stages: list[dict[str, Any]],
    programs: list[Path],
    example: Inputs,
    runtime: str,
    threads: int,
) -> None:
    """Times all stages in the runtime, a batch of one, and writes it into them as ``latency_ms``.

    They are timed side by side, or, where together they would take much memory, in turns. The artefact is
    the last stage's program, so it has that one's times. If it computes in integers, it is also timed with
    a batch of eight, beside the baseline: ``latency_batches`` of the last stage.

    Args:
        stages: as in measurements.json, the artefact last.
        programs: exported networks, baseline first.
        example: inputs; the first of them is used.
        runtime: that runs the result. If it is another than ONNX Runtime, the baseline is timed there too
            and the ratio to it is told as ``ratio_to_onnxruntime``. One that opens no network of floats
            times the last alone, and the baseline is ONNX Runtime's.
        threads: of all sessions.
    """
    one = first_example(example)
    names = [f"{i}" for i in range(len(programs))]
    if runtime in THROUGHOUT:
        names = names[-1:]
    elif sum(path.stat().st_size for path in programs) > ALL:
        names = sorted({names[0], names[-1]}, key=int)
    timed, precision = time_programs(names, programs, one, runtime, threads)
    for name in names:
        stages[int(name)]["latency_ms"] = latency_facts(
            timed[name], runtime, precision[name], timed.get(REFERENCE)
        )
    if runtime in THROUGHOUT:
        stages[0]["latency_ms"] = latency_facts(timed[REFERENCE], REFERENCE, precision[REFERENCE])
    stages[-1]["latency_ms"] = dict(stages[-2]["latency_ms"])
    first = precision[REFERENCE if runtime in THROUGHOUT else names[0]]
    if precision[names[-1]] == "int8" and first != "int8":
        several = mapped(one, lambda t: t.expand(BATCH, *t.shape[1:]).clone() if t.dim() else t)
        ends = sorted({names[0], names[-1]}, key=int)
        timed, _ = time_programs(ends, programs, several, runtime, threads)
        found = timed[names[-1]]
        facts = latency_facts(found, runtime, "int8", timed.get(REFERENCE))
        stages[-1]["latency_batches"] = [facts]


def time_programs(
    names: list[str], programs: list[Path], inputs: Inputs, runtime: str, threads: int
) -> tuple[dict[str, Latency], dict[str, str]]:
    """Times and arithmetic of the programs with these numbers, and of the baseline in ONNX Runtime."""
    precision: dict[str, str] = {}

    def open_one(name: str) -> Runner:
        where = REFERENCE if name == REFERENCE else runtime
        opened = open_program(
            programs[0 if name == REFERENCE else int(name)], where, threads=threads
        )
        precision.setdefault(name, opened.precision)
        return opened.fixed(inputs)

    wanted = [*names, *([REFERENCE] if runtime != REFERENCE else [])]
    if runtime in THROUGHOUT:
        wanted.reverse()  # the first is what the others are compared with
    size = sum(path.stat().st_size for path in programs)
    timed = latency_in_turns(
        {name: partial(open_one, name) for name in wanted},
        inputs,
        turns=1 if size <= TOGETHER else TURNS,
        threads=threads,
    )
    return timed, precision


def latency_facts(
    found: Latency, runtime: str, precision: str, reference: Latency | None = None
) -> dict[str, Any]:
    """A latency as it stands in measurements.json."""
    facts = {
        "runtime": runtime,
        "batch": found.batch,
        "threads": found.threads,
        "median": found.median,
        "iqr": list(found.iqr),
        "cpu_median": found.cpu_median,
        "ratio_to_baseline": found.ratio,
        "ratio_iqr": list(found.ratio_iqr),
        "precision": precision,
    }
    if reference is not None:
        facts["ratio_to_onnxruntime"] = found.ratio / reference.ratio
    return facts
