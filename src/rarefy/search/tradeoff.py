# SPDX-License-Identifier: Apache-2.0
"""The trade-off between what a network costs and how well it does: sweeps, Pareto fronts, the knee.

Stated as asked for by Blalock, Gonzalez Ortiz, Frankle, Guttag: What is the State of Neural Network
Pruning?, 2020, arXiv 2003.03033: whole curves instead of single points, several seeds, measured sizes.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rarefy.compress import run_recipe
from rarefy.loops.progress import watch
from rarefy.recipe import Recipe
from rarefy.task import Task


@dataclass(frozen=True)
class Point:
    """One setting of a sweep, averaged over seeds.

    Attributes:
        name: of the setting.
        size: bytes of the stored file.
        macs: theoretical cost of one example, or None.
        latency_ms: measured in the runtime, median over seeds, or None.
        metric: mean over seeds.
        metric_interval: half the width of its 95 % confidence interval (Student's t); None for one seed.
        seeds: how many.
    """

    name: str
    size: float
    macs: float | None
    latency_ms: float | None
    metric: float
    metric_interval: float | None
    seeds: int


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats: none costs at most as much and scores higher,
    or costs less and scores as high. Ordered by cost; of equal points the first is kept.

    Args:
        costs: lower is better.
        scores: higher is better.

    Examples:
        >>> pareto_front([1, 2, 3], [0.9, 0.8, 0.95])
        [0, 2]
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i], i))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def knee(costs: Sequence[float], scores: Sequence[float]) -> int:
    """The point of a front that lies farthest above the chord between its ends, on a logarithmic cost axis.

    Satopää, Albrecht, Irwin, Raghavan: Finding a "Kneedle" in a Haystack, 2011, for a discrete curve.

    Returns:
        An index into the given points; the better end where the front has fewer than three points.
    """
    front = pareto_front(costs, scores)
    x = np.log([costs[i] for i in front])
    y = np.array([scores[i] for i in front], dtype=float)
    if len(front) < 3 or x[-1] == x[0] or y[-1] == y[0]:
        return front[-1]
    height = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    return front[int(height.argmax())]


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    return student_t(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by bisection of its distribution function."""

    def below(t: float) -> float:  # Simpson's rule over the density, substituted to a finite range
        angle = np.linspace(0, math.atan(t / math.sqrt(freedom)), 2001)
        density = np.cos(angle) ** (freedom - 1)
        scale = math.gamma((freedom + 1) / 2) / (math.sqrt(math.pi) * math.gamma(freedom / 2))
        weights = np.r_[1, np.tile([4, 2], 999), 4, 1]
        return 0.5 + scale * float(density @ weights) * (angle[1] - angle[0]) / 3

    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return high


def sweep(
    model: nn.Module,
    task: Task,
    recipes: Mapping[str, Recipe],
    *,
    seeds: Sequence[int] = (0,),
    cache: Path | None = None,
) -> list[Point]:
    """Runs every recipe under every seed and returns one point a recipe, the untouched network first.

    Args:
        model: the trained network.
        task: data and metric.
        recipes: by the names of their points.
        seeds: of the runs.
        cache: folder of finished stages; steps that recipes share at their start are done once.
    """
    runs: dict[str, list[dict[str, Any]]] = {"baseline": []}
    jobs = [(name, recipe, seed) for name, recipe in recipes.items() for seed in seeds]
    for name, recipe, seed in watch(jobs, "sweep", "run"):
        stages = run_recipe(model, task, recipe, seed=seed, cache=cache).measurements
        first = {**stages[0], "bytes": {"rfy": stages[0]["bytes"]["safetensors"]}}
        runs["baseline"] = runs["baseline"] or [first]
        runs.setdefault(name, []).append(stages[-1])
    return [summary(name, stages) for name, stages in runs.items() if stages]


def summary(name: str, stages: Sequence[Mapping[str, Any]]) -> Point:
    """One point from the final stages of several seeds."""
    metrics = [stage["metric"]["value"] for stage in stages]
    times = [stage["latency_ms"]["median"] for stage in stages if stage["latency_ms"]]
    macs = [stage["macs"] for stage in stages if stage["macs"] is not None]
    return Point(
        name,
        float(np.mean([stage["bytes"]["rfy"] for stage in stages])),
        float(np.mean(macs)) if macs else None,
        float(np.median(times)) if times else None,
        float(np.mean(metrics)),
        interval(metrics),
        len(stages),
    )


def write_tradeoff(points: Sequence[Point], folder: Path, *, higher_is_better: bool = True) -> Path:
    """Writes ``tradeoff.json`` and ``tradeoff.html`` (points, Pareto front, knee) and returns the page."""
    sign = 1.0 if higher_is_better else -1.0
    sizes, scores = [p.size for p in points], [sign * p.metric for p in points]
    front, bend = pareto_front(sizes, scores), knee(sizes, scores)
    document = {"points": [asdict(p) for p in points], "pareto_front": front, "knee": bend}
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "tradeoff.html"
    replace(
        folder / "tradeoff.json", lambda to: to.write_text(json.dumps(document, indent=1) + "\n")
    )
    replace(page, lambda to: to.write_text(figure(points, front, bend), encoding="utf-8"))
    return page


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file under another name and moves it into its place."""
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def figure(points: Sequence[Point], front: Sequence[int], bend: int) -> str:
    """A page with one chart: size against metric, the front joined, the knee named."""
    import plotly.graph_objects as go

    def trace(chosen: Sequence[int], name: str, mode: str, **style: Any) -> Any:
        rows = [points[i] for i in chosen]
        errors = {"type": "data", "array": [p.metric_interval or 0 for p in rows]}
        return go.Scatter(
            x=[p.size for p in rows],
            y=[p.metric for p in rows],
            text=[p.name for p in rows],
            error_y=errors if "markers" in mode else None,
            mode=mode,
            name=name,
            **style,
        )

    chart = go.Figure(
        [
            trace(front, "Pareto front", "lines", line={"width": 2}),
            trace(range(len(points)), "settings", "markers+text", textposition="top center"),
            trace([bend], "knee", "markers", marker={"size": 16, "symbol": "circle-open"}),
        ]
    )
    chart.update_layout(title="Size against metric, measured on the files", template="plotly_white")
    chart.update_xaxes(title="bytes of the stored file (logarithmic)", type="log")
    chart.update_yaxes(title="metric (mean over seeds, 95 % confidence interval)")
    return str(chart.to_html(include_plotlyjs=True, full_html=True))
