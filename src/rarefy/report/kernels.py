# SPDX-License-Identifier: Apache-2.0
"""Which kernel the runtime took for each product, and how far it is from what the machine can do."""

from collections.abc import Mapping, Sequence

from rarefy.report import quantities as q
from rarefy.report.markup import Markup
from rarefy.report.schema import Kernel, Measurements
from rarefy.report.table import Cell, section, table
from rarefy.report.verdict import runtime_name

HEADINGS = ["Layer", "Kernel", "MACs", "Time", "GMAC/s", "Of the ceiling"]


def speed(kernel: Kernel) -> float | None:
    """Billions of multiply-accumulates in a second."""
    if not kernel.macs or not kernel.microseconds:
        return None
    return kernel.macs / kernel.microseconds / 1e3


def share(kernel: Kernel, ceilings: Mapping[str, float]) -> float | None:
    """The kernel's speed as a part of the best that was seen in its arithmetic."""
    found, best = speed(kernel), ceilings.get("int8" if kernel.integer else "float32")
    return found / best if found and best else None


def overall(kernels: Sequence[Kernel], ceilings: Mapping[str, float]) -> float | None:
    """The time that all timed kernels would take at their ceilings, as a part of what they took."""
    parts = [(k.microseconds, part) for k in kernels if (part := share(k, ceilings))]
    total = sum(time for time, _ in parts if time)
    return sum(time * part for time, part in parts if time) / total if total else None


def lead(measurements: Measurements) -> str:
    """How many products are integers, and how fast all are together."""
    kernels, ceilings = measurements.kernels, measurements.ceilings
    latency = measurements.after.latency_ms
    where = runtime_name(latency.runtime) if latency else "The runtime"
    integers = sum(kernel.integer for kernel in kernels)
    words = f"{where} computes {integers} of {len(kernels)} convolutions and matrix products in integers."
    part = overall(kernels, ceilings)
    if part is None:
        return words
    best = ", ".join(f"{name} {q.plain(value)}" for name, value in ceilings.items())
    return (
        f"{words} Together they run at {q.percent(part, 0)} of the ceiling, the best that large products "
        f"reach in it on this machine ({best} GMAC/s)."
    )


def row(kernel: Kernel, ceilings: Mapping[str, float]) -> list[str | Cell]:
    """One product of the table."""
    time, found, part = kernel.microseconds, speed(kernel), share(kernel, ceilings)
    shown = f"{q.plain(time)}{q.SPACE}µs" if time is not None else q.MISSING
    return [
        q.shortened(kernel.layer, 40),
        Cell(kernel.kernel or kernel.operator, kernel.reason),
        Cell(q.amount(kernel.macs), key=kernel.macs),
        Cell(shown, key=time),
        Cell(q.plain(found), key=found),
        Cell(q.percent(part, 0), key=part),
    ]


def kernels_section(measurements: Measurements) -> Markup:
    """All convolutions and matrix products of the file, in its order."""
    rows = [row(kernel, measurements.ceilings) for kernel in measurements.kernels]
    caption = "What the runtime made of each convolution and matrix product"
    written = table(caption, HEADINGS, rows, sortable=True, words=2)
    return section("kernels", "Kernels", lead(measurements), written)
