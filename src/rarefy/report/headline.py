# SPDX-License-Identifier: Apache-2.0
"""The top of the page: the verdict in words, the shrinkage to scale, the numbers that matter."""

import math

from rarefy.report import quantities as q
from rarefy.report import verdict
from rarefy.report.assurance import badge
from rarefy.report.costs import latency_conditions
from rarefy.report.markup import Markup, element, group
from rarefy.report.schema import Measurements, Metric


def headline(measurements: Measurements) -> Markup:
    """Verdict, badges, picture and cards."""
    parts = verdict.clauses(measurements) or ["measured"]
    ends = [","] * (len(parts) - 1) + ["."]
    strong = [
        element("span", part + end, class_="clause") for part, end in zip(parts, ends, strict=True)
    ]
    title = element("h1", Markup(" ".join(strong)))
    origin = element(
        "p",
        element("span", measurements.model, class_="name"),
        " on ",
        element("span", measurements.task, class_="name"),
        class_="kicker",
    )
    text = element("div", origin, title, _badges(measurements), class_="words")
    cards = element("div", *_cards(measurements), class_="cards")
    return element("header", element("div", text, _to_scale(measurements), class_="hero"), cards)


def _badges(measurements: Measurements) -> Markup:
    badges = []
    if measurements.budget is not None:
        met = measurements.budget.met
        badges.append(badge(met, "budget met" if met else "budget not met"))
    if measurements.parity is not None:
        passed = measurements.parity.passed
        badges.append(badge(passed, "parity holds" if passed else "parity fails"))
    return element("p", *badges, class_="badges") if badges else group()


def _to_scale(measurements: Measurements) -> Markup:
    """Two squares whose areas are the two sizes."""
    found = verdict.size_change(measurements)
    if found is None or found.ratio < 1:
        return group()
    side = 100 * math.sqrt(1 / found.ratio)
    before, after = q.size(found.before), q.size(found.after)
    label = f"Drawn to scale: {before} before, {after} after"
    inner = element("div", class_="inner", style=f"width:{side:.2f}%;height:{side:.2f}%")
    outer = element("div", inner, class_="outer", role="img", aria_label=label)
    sizes = element("span", f"{before} → {after}")
    legend = element("figcaption", sizes, element("span", "areas drawn to scale"))
    return element("figure", outer, legend, class_="to-scale")


def _card(value: str, unit: str, *lines: str) -> Markup:
    return element(
        "div",
        element("p", value, class_="value"),
        element("p", unit, class_="unit"),
        *(element("p", line, class_="line") for line in lines if line),
        class_="card",
    )


def _cards(measurements: Measurements) -> list[Markup]:
    first, last = measurements.before, measurements.after
    cards = []
    if (found := verdict.size_change(measurements)) is not None:
        small = found.ratio >= 1
        ratio = q.factor(found.ratio if small else 1 / found.ratio)
        names = f"{_file(found.kind_before)} to {_file(found.kind_after)}"
        sizes = f"{q.size(found.before)} → {q.size(found.after)}"
        cards.append(_card(ratio, "smaller" if small else "larger", sizes, names))
    if last.metric is not None:
        cards.append(_metric_card(first.metric, last.metric))
    speed = verdict.speed_change(first.latency_ms, last.latency_ms)
    if speed is not None and first.latency_ms and last.latency_ms:
        slower = speed.ratio < 1
        ratio = q.factor(1 / speed.ratio if slower else speed.ratio)
        word = "slower" if slower else "faster"
        times = (
            f"{q.milliseconds(first.latency_ms.median)} → {q.milliseconds(last.latency_ms.median)}"
        )
        unit = word if speed.is_clear else f"{word}, within the noise"
        cards.append(
            _card(ratio, unit, times, speed.spread_text, latency_conditions(last.latency_ms))
        )
    cards.append(_file_card(measurements))
    return cards


def _file(kind: str) -> str:
    return "float32 weights" if kind == "safetensors" else verdict.FILE_NAMES[kind]


def _metric_card(before: Metric | None, after: Metric) -> Markup:
    difference = verdict.difference_text(before, after)
    change = "" if before is None else f"{verdict.metric_text(before)} before ({difference})"
    return _card(
        verdict.metric_text(after),
        f"{after.name} after",
        change,
        _examples(before, after),
        verdict.evaluation(after),
    )


def _examples(before: Metric | None, after: Metric) -> str:
    """The change in whole examples, where the metric is an accuracy over equally many."""
    difference = verdict.metric_difference(before, after)
    if before is None or difference is None or not after.name.startswith("accuracy"):
        return f"{q.count(after.examples)} examples" if after.examples else ""
    if not after.examples or before.examples != after.examples:
        return ""
    changed = round(difference * after.examples)
    if not changed:
        return f"as many of {q.count(after.examples)} right"
    word = "fewer" if changed < 0 else "more"
    return f"{q.count(abs(changed))} of {q.count(after.examples)} {word} right"


def _file_card(measurements: Measurements) -> Markup:
    sizes = measurements.after.bytes
    first, last = measurements.before, measurements.after
    kept = last.nonzero / first.parameters if first.parameters else math.nan
    files = [
        f"{verdict.FILE_NAMES[kind]} {q.size(sizes[kind])}"
        for kind in ("rfy", "onnx", "tflite")
        if kind in sizes
    ]
    value = q.percent(kept, 1)
    return _card(value, "of parameters left", f"{q.count(last.nonzero)} non-zero", *files)
