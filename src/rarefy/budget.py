# SPDX-License-Identifier: Apache-2.0
"""What the result of a compression may cost."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction

from rarefy.errors import RecipeError, nearest

BYTES = {
    "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip
MANY = {"k": 1e3, "m": 1e6, "g": 1e9}
UNITS: dict[str, tuple[str, dict[str, float]]] = {
    "size": ("bytes", BYTES | MANY),
    "parameters": ("parameters", MANY),
    "macs": ("multiply-accumulates", MANY),
    "latency": ("milliseconds", {"us": 1e-3, "ms": 1.0, "s": 1e3}),
    "memory": ("bytes", BYTES | MANY),
    "energy": ("microjoules", {"uj": 1.0, "mj": 1e3, "j": 1e6}),
    "metric_drop": ("the metric", {}),
}


class Absolute(float):
    """A limit that is no share of the baseline's cost even if it is 1 or less, as ``latency=0.5ms``."""

    def __repr__(self) -> str:
        return f"Absolute({float(self)!r})"


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
    """Upper limits; a number up to 1 is a share of the baseline's, a larger or `Absolute` one is not.

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
                least = "0 or greater" if f.name == "metric_drop" else "greater than 0"
                raise RecipeError(f"budget: {f.name}={value} is not allowed: it must be {least}")
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise RecipeError('the budget is empty; write for example "size=1/8,metric_drop=0.01"')

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads ``"size=1/8,latency=5ms,metric_drop=0.01"``; sizes take kB, MB, KiB …

        A number with a unit is absolute; without one it is a share up to 1, and so is a percentage.

        Raises:
            RecipeError: unknown name, unreadable number, a unit of something else, a limit given twice.
        """
        known = [f.name for f in fields(cls)]
        values: dict[str, float] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, number = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise RecipeError(
                    f"budget '{text}': there is no limit '{name}'{nearest(name, known)}"
                )
            if name in values:
                raise RecipeError(f"budget '{text}': '{name}' is limited twice")
            values[name] = quantity(number, f"budget '{text}'", name)
        return cls(**values)

    def limit(self, name: str, baseline: float | None) -> float | None:
        """A limit in the unit of the cost, shares made absolute; None without one, NaN without baseline."""
        found: float | None = getattr(self, name)
        if found is None or name == "metric_drop" or found > 1 or isinstance(found, Absolute):
            return found
        return float("nan") if baseline is None else found * baseline

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
            limit, cost = self.limit(f.name, before.get(f.name)), found.get(f.name)
            if limit is None:
                continue
            met = cost is not None and cost <= limit + 1e-12
            verdicts.append(Verdict(f.name, limit, cost, met))
        return verdicts


def quantity(text: str, where: str, name: str = "size") -> float:
    """A number, a fraction, a percentage, or a number with a unit of what `name` limits.

    Args:
        text: such as ``1/8``, ``12%``, ``44kB``.
        where: begins the complaint.
        name: of a limit of `Budget`.

    Returns:
        A plain number, or an `Absolute` one if there is a unit.

    Raises:
        RecipeError: it is none, its unit measures something else, or it is more than 100 %.
    """
    match = re.fullmatch(r"([0-9./eE+-]+?)\s*(%|[a-zA-Z]*)", text)
    kind, units = UNITS[name]
    unit = match[2].lower() if match else ""
    try:
        number = float(Fraction(match[1])) if match else math.nan
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise RecipeError(f"{where}: '{text}' is no quantity; write 1/8, 12%, 44kB or 5ms")
    if unit == "%" and number > 100 and name != "metric_drop":
        raise RecipeError(f"{where}: '{text}' is more than the baseline; write a share below 100%")
    if unit in ("", "%"):
        return number * 0.01 if unit else number
    if unit not in units:
        known = f"its units are {', '.join(units)}" if units else "it has no unit"
        raise RecipeError(f"{where}: '{text}' is no quantity of {kind}; {known}")
    return Absolute(number * units[unit])
