# SPDX-License-Identifier: Apache-2.0
"""What the network costs before, after and at every stage, as tables."""

from collections.abc import Callable

from rarefy.report import quantities as q
from rarefy.report import verdict
from rarefy.report.markup import Markup
from rarefy.report.schema import Latency, Measurements, Stage
from rarefy.report.table import Cell, table

FILES = {"rfy": "packed file", "onnx": "for the runtime", "safetensors": "plain weights"}

Read = Callable[[Stage], float | None]
Show = Callable[[float | None], str]


def latency_cell(latency: Latency | None) -> Cell:
    """Median, and below it the quartiles, in milliseconds."""
    if latency is None:
        return Cell(q.MISSING)
    low, high = (q.plain(x) for x in latency.iqr)
    return Cell(q.milliseconds(latency.median), f"{low} to {high}", key=latency.median)


def latency_conditions(latency: Latency) -> str:
    """Under what the latency was taken: runtime, batch, threads, precision."""
    threads = f"{latency.threads} thread{'' if latency.threads == 1 else 's'}"
    precision = f", {latency.precision}" if latency.precision else ""
    return f"{verdict.runtime_name(latency.runtime)}, batch {latency.batch}, {threads}{precision}"


def speed_cell(before: Latency | None, after: Latency | None) -> Cell:
    """The speed-up with its spread, or that there is none to tell."""
    if before is None or after is None:
        return Cell(q.MISSING)
    change = verdict.speed_change(before, after)
    if change is None:
        return Cell("not comparable", "measured under other conditions")
    tone = None
    if change.is_clear:
        tone = "better" if change.ratio > 1 else "worse"
    return Cell(change.word, change.spread_text, tone=tone)


def _file_size(kind: str) -> Read:
    return lambda stage: stage.bytes.get(kind)


def _cpu_time(stage: Stage) -> float | None:
    return stage.latency_ms.cpu_median if stage.latency_ms else None


def _quantities() -> list[tuple[Cell, Read, Show, str, str]]:
    """Name, where to read it, how to write it, and the words for less and more of it."""
    files = [
        (Cell(verdict.FILE_NAMES[kind], detail), _file_size(kind), q.size, "smaller", "larger")
        for kind, detail in FILES.items()
    ]
    return [
        *files,
        (Cell("Parameters"), lambda s: s.parameters, q.amount, "fewer", "more"),
        (Cell("Non-zero", "parameters"), lambda s: s.nonzero, q.amount, "fewer", "more"),
        (Cell("MACs", "one example"), lambda s: s.macs, q.amount, "fewer", "more"),
        (Cell("CPU time", "one call, median"), _cpu_time, q.milliseconds, "less", "more"),
        (Cell("Peak memory"), lambda s: s.memory_bytes, q.size, "less", "more"),
        (Cell("Energy", "one example, estimate"), lambda s: s.energy_uj, q.energy, "less", "more"),
    ]


def _metric_row(first: Stage, last: Stage) -> list[Cell]:
    metric = last.metric or first.metric
    if metric is None:
        return []
    tone = "worse" if verdict.got_worse(first.metric, last.metric) else None
    return [
        Cell(metric.name.capitalize()),
        *(Cell(verdict.metric_text(s.metric), verdict.evaluation(s.metric)) for s in (first, last)),
        Cell(verdict.difference_text(first.metric, last.metric), tone=tone),
    ]


def before_after_table(measurements: Measurements) -> Markup:
    """The baseline against the artefact as saved; what neither has is left out."""
    first, last = measurements.before, measurements.after
    rows = [row] if (row := _metric_row(first, last)) else []
    if first.latency_ms or last.latency_ms:
        latencies = first.latency_ms, last.latency_ms
        change = speed_cell(*latencies)
        rows.append([Cell("Latency", "median, quartiles"), *map(latency_cell, latencies), change])
    for name, read, show, less, more in _quantities():
        before, after = read(first), read(last)
        if before is None and after is None:
            continue
        change = Cell(q.compared(before, after, less, more), tone=_tone(before, after))
        rows.append([name, Cell(show(before)), Cell(show(after)), change])
    return table("The network before and after", ["", "Before", "After", "Change"], rows)


def _tone(before: float | None, after: float | None) -> str | None:
    """Less is better; half a per cent is neither."""
    if not q.finite(before) or not q.finite(after) or abs(after - before) < 0.005 * before:
        return None
    return "better" if after < before else "worse"


def stages_table(measurements: Measurements) -> Markup:
    """Every stage with everything that was measured of it."""
    stages = measurements.stages
    metric = next((s.metric.name for s in stages if s.metric), "metric")
    kept = [entry for entry in _quantities() if any(entry[1](s) is not None for s in stages)]
    headings = ["Stage", metric.capitalize(), "Latency"]
    headings += [f"{name.text} {name.detail}".strip() for name, *_ in kept]
    rows = [
        [
            Cell(s.name),
            Cell(verdict.metric_text(s.metric), verdict.evaluation(s.metric)),
            latency_cell(s.latency_ms),
            *(Cell(show(read(s))) for _, read, show, _, _ in kept),
            Cell(q.duration(s.seconds)),
        ]
        for s in stages
    ]
    return table("Every stage and what was measured of it", [*headings, "Time taken"], rows)
