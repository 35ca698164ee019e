# SPDX-License-Identifier: Apache-2.0
"""What the run comes to: how much smaller and faster, at what price, in numbers and in words."""

from dataclasses import dataclass

from rarefy.report import quantities as q
from rarefy.report.schema import Latency, Measurements, Metric

FILE_NAMES = {
    "rfy": "model.rfy",
    "onnx": "model.onnx",
    "safetensors": "safetensors",
    "tflite": "model.tflite",
}
RUNTIMES = {
    "pytorch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
}
INSIGNIFICANT = 0.02  # a speed ratio without spread must differ from one by more than this


@dataclass(frozen=True)
class SizeChange:
    """Bytes before and after, with the kinds of file that were counted."""

    before: int
    after: int
    kind_before: str
    kind_after: str

    @property
    def ratio(self) -> float:
        """How many times the file shrank; below one where it grew."""
        return self.before / self.after


@dataclass(frozen=True)
class SpeedChange:
    """How many times faster, from the lower to the upper quartile where the ratio was sampled."""

    ratio: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """False where "as fast as before" lies within the spread."""
        if self.low is None or self.high is None:
            return abs(self.ratio - 1) > INSIGNIFICANT
        return self.low > 1 or self.high < 1

    @property
    def word(self) -> str:
        """``1.32× faster``, ``1.10× slower`` or ``as fast as before``."""
        if not self.is_clear:
            return "as fast as before"
        if self.ratio > 1:
            return f"{q.factor(self.ratio)} faster"
        return f"{q.factor(1 / self.ratio)} slower"

    @property
    def spread_text(self) -> str:
        """The quartiles of the speed ratio, or nothing where it was not sampled."""
        if self.low is None or self.high is None:
            return ""
        return f"{q.plain(self.low)} to {q.factor(self.high)} speed"


def runtime_name(name: str) -> str:
    """A runtime's own spelling of its name."""
    return RUNTIMES.get(name, name)


def evaluation(metric: Metric | None) -> str:
    """Where the metric was evaluated."""
    return f"in {runtime_name(metric.through)}" if metric else ""


def size_change(measurements: Measurements) -> SizeChange | None:
    """The baseline's plain weights against the file that was saved, the packed one first.

    None where either side has no file of a size above zero.
    """
    before, after = measurements.before.bytes, measurements.after.bytes
    first = next((kind for kind in ("safetensors", "onnx", "rfy") if before.get(kind)), None)
    last = next((kind for kind in ("rfy", "onnx", "safetensors") if after.get(kind)), None)
    if first is None or last is None:
        return None
    return SizeChange(before[first], after[last], first, last)


def speed_change(before: Latency | None, after: Latency | None) -> SpeedChange | None:
    """The baseline's time over the artefact's.

    The interleaved ratio is used where it was measured; two medians are compared only when runtime,
    batch, threads and precision agree. None where nothing can be compared.
    """
    if before is None or after is None:
        return None
    ratio, spread = after.ratio_to_baseline, after.ratio_iqr
    if q.finite(ratio) and ratio > 0:
        if spread is None or not all(q.finite(end) and end > 0 for end in spread):
            return SpeedChange(1 / ratio)
        return SpeedChange(1 / ratio, 1 / spread[1], 1 / spread[0])
    alike = ("runtime", "batch", "threads", "precision")
    if any(getattr(before, name) != getattr(after, name) for name in alike):
        return None
    if not (q.finite(before.median) and q.finite(after.median) and after.median > 0):
        return None
    return SpeedChange(before.median / after.median)


def metric_text(metric: Metric | None) -> str:
    """The metric's value with its unit: percent for fractions, else the number alone."""
    if metric is None:
        return q.MISSING
    return q.percent(metric.value) if metric.is_fraction else q.plain(metric.value, 4)


def metric_difference(before: Metric | None, after: Metric | None) -> float | None:
    """After minus before; None where one of them is no finite number."""
    if before is None or after is None or not (q.finite(before.value) and q.finite(after.value)):
        return None
    return after.value - before.value


def difference_text(before: Metric | None, after: Metric | None) -> str:
    """The metric's change with its sign: points (pt) for fractions, else the number alone."""
    difference = metric_difference(before, after)
    if before is None or difference is None:
        return q.MISSING
    if before.is_fraction:
        return q.points(difference)
    return q.signed(difference, q.plain(abs(difference)))


def got_worse(before: Metric | None, after: Metric | None) -> bool:
    """True where the metric moved against its direction."""
    difference = metric_difference(before, after)
    if before is None or difference is None:
        return False
    return difference < 0 if before.higher_is_better else difference > 0


def metric_clause(before: Metric | None, after: Metric | None) -> str:
    """The metric's part of the verdict: ``accuracy 0.06 points lower``; empty without a metric."""
    if before is None or after is None:
        return ""
    difference = metric_difference(before, after)
    if difference is None:
        return f"{before.name} not comparable"
    text = difference_text(before, after).lstrip(f"+{q.MINUS}").replace("pt", "points")
    if not any(digit in text for digit in "123456789"):
        return f"{before.name} unchanged"
    return f"{before.name} {text} {'lower' if difference < 0 else 'higher'}"


def clauses(measurements: Measurements) -> list[str]:
    """The verdict's parts: size, speed, price; those that were not measured are left out."""
    before, after = measurements.before, measurements.after
    found = size_change(measurements)
    speed = speed_change(before.latency_ms, after.latency_ms)
    size = q.compared(found.before, found.after, "smaller", "larger") if found else ""
    parts = [
        "the same size" if size == "unchanged" else size,
        speed.word if speed else "",
        metric_clause(before.metric, after.metric),
    ]
    return [part for part in parts if part]
