# SPDX-License-Identifier: Apache-2.0
"""What the result of a compression may cost."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction

from rarefy.errors import RecipeError, nearest

UNITS = {
    "": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
    "k": 1e3, "m": 1e6, "g": 1e9, "ms": 1.0, "us": 1e-3, "s": 1e3, "uj": 1.0, "mj": 1e3, "j": 1e6,
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether one limit holds.

    Attributes:
        name: of the limit.
        limit: the largest value allowed, in the unit of `found`.
        found: what the result costs; None if it was not measured.
        met: whether found <= limit.
    """

    name: str
    limit: float
    found: float | None
    met: bool


@dataclass(frozen=True)
class Budget:
    """Upper limits; a number up to 1 is a share of the baseline's, a larger one is absolute.

    Attributes:
        size: bytes of the stored file (.rfy); the baseline is the weights as float32.
        parameters: how many.
        macs: multiply-accumulates for one example.
        latency: milliseconds of a batch of one in the runtime.
        memory: bytes at the peak of one inference.
        energy: microjoules of one inference, by the model of `rarefy.measure.energy`.
        metric_drop: how much worse the metric may get, in its own unit (0.01 is one point of accuracy).

    Examples:
        >>> budget = Budget.parse("size=1/8,metric_drop=0.01")
        >>> budget.size, budget.metric_drop
        (0.125, 0.01)
    """

    size: float | None = None
    parameters: float | None = None
    macs: float | None = None
    latency: float | None = None
    memory: float | None = None
    energy: float | None = None
    metric_drop: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (value > 0 or (f.name == "metric_drop" and value >= 0)):
                raise RecipeError(
                    f"budget: {f.name}={value} is not allowed: it must be greater than 0"
                )
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise RecipeError('the budget is empty; write for example "size=1/8,metric_drop=0.01"')

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads ``"size=1/8,latency=5ms,metric_drop=0.01"``; sizes take kB, MB, KiB …

        Raises:
            RecipeError: unknown name or unreadable number.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise RecipeError(
                    f"budget '{text}': there is no limit '{name}'{nearest(name, known)}"
                )
            values[name] = quantity(number, f"budget '{text}'")
        return cls(**values)

    def verdicts(
        self, before: Mapping[str, float | None], after: Mapping[str, float | None], drop: float
    ) -> list[Verdict]:
        """Compares the costs of the result with those of the baseline, limit by limit.

        Args:
            before, after: costs by the names of the limits (without metric_drop); None if not measured.
            drop: how much worse the metric became.
        """
        found = {**after, "metric_drop": drop}
        verdicts = []
        for f in fields(self):
            limit, cost, base = getattr(self, f.name), found.get(f.name), before.get(f.name)
            if limit is None:
                continue
            if f.name != "metric_drop" and limit <= 1:
                limit = limit * base if base is not None else float("nan")
            met = cost is not None and cost <= limit + 1e-12
            verdicts.append(Verdict(f.name, limit, cost, met))
        return verdicts


def quantity(text: str, where: str) -> float:
    """A number, a fraction or a percentage, with an optional unit.

    Raises:
        RecipeError: it is none.
    """
    match = re.fullmatch(r"([0-9./eE+-]+?)\s*(%|[a-zA-Z]*)", text)
    unit = match[2].lower() if match else ""
    if match and (unit == "%" or unit in UNITS):
        try:
            return float(Fraction(match[1])) * (0.01 if unit == "%" else UNITS[unit])
        except (ValueError, ZeroDivisionError):
            pass
    raise RecipeError(f"{where}: '{text}' is no quantity; write 1/8, 12%, 44kB or 5ms")
