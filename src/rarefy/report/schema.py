# SPDX-License-Identifier: Apache-2.0
"""What the report reads of ``measurements.json``; keys that it does not know are let through."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rarefy.errors import FileError

Count = Annotated[int, Field(ge=0)]
Spread = tuple[float, float]

# Metrics that are fractions of one and are therefore told in percent and points.
FRACTIONS = ("accuracy", "top", "recall", "precision", "f1", "auc", "map", "iou", "dice")


class Part(BaseModel):
    """One object of the file: read only, unknown keys ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Metric(Part):
    """How well the network does, and where it was evaluated."""

    name: str
    value: float | None
    higher_is_better: bool = True
    through: str = "pytorch"
    examples: Count | None = None

    @property
    def is_fraction(self) -> bool:
        """True where the value is a fraction of one, as accuracy is."""
        named = self.name.lower().startswith(FRACTIONS)
        return named and (self.value is None or not abs(self.value) > 1)


class Latency(Part):
    """Milliseconds of one call; ratios are this stage's time over the baseline's."""

    runtime: str
    batch: Count
    threads: Count
    median: float
    iqr: Spread
    cpu_median: float | None = None
    ratio_to_baseline: float | None = None
    ratio_iqr: Spread | None = None
    precision: str | None = None


class Stage(Part):
    """The network after one step, with all that was measured."""

    name: str
    metric: Metric | None = None
    parameters: Count
    nonzero: Count
    macs: Count | None = None
    bytes: dict[str, Count] = {}
    latency_ms: Latency | None = None
    memory_bytes: Count | None = None
    energy_uj: float | None = None
    seconds: float | None = None


class Layer(Part):
    """One weight before and after, and the form in which it is stored."""

    name: str
    type: str
    shape: list[int]
    parameters: Count
    nonzero: Count
    distinct: Count | None = None
    form: str
    bytes_before: Count
    bytes_after: Count
    sqnr_db: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0


class Kernel(Part):
    """What the runtime made of a convolution or matrix product, and how long one example takes it."""

    layer: str
    operator: str
    integer: bool
    kernel: str
    reason: str = ""
    macs: Count | None = None
    microseconds: float | None = None


class Classes(Part):
    """Confusion counts: row = true class, column = answer."""

    names: list[str]
    confusion_before: list[list[Count]]
    confusion_after: list[list[Count]]
    examples: Count | None = None

    @model_validator(mode="after")
    def _square(self) -> Self:
        for which in ("confusion_before", "confusion_after"):
            rows = getattr(self, which)
            if len(rows) != len(self.names) or any(len(r) != len(self.names) for r in rows):
                found = f"{len(rows)} rows of {sorted({len(r) for r in rows})} counts"
                raise ValueError(f"{which} has {found} for {len(self.names)} class names")
        return self


class Parity(Part):
    """How far the exported file's answers are from the network's."""

    runtime: str
    passed: bool
    max_absolute: float | None = None
    max_relative: float | None = None
    agreement: float | None = None
    samples: Count | None = None
    tolerance: float | None = None
    first_diverging_layer: str | None = None


class Limit(Part):
    """One line of the budget."""

    name: str
    limit: float | None
    found: float | None
    met: bool


class BudgetVerdict(Part):
    """What was asked for and whether it was reached."""

    asked: str
    met: bool
    limits: list[Limit] = []


class Epoch(Part):
    """One pass over the training data."""

    epoch: float
    loss: float | None = None
    metric: float | None = None
    rate: float | None = None


class Probe(Part):
    """The metric with one layer alone made sparse."""

    layer: str
    sparsity: float
    metric: float | None


class Measurements(Part):
    """The whole of ``measurements.json``."""

    rarefy: str
    model: str
    task: str
    seed: int | None = None
    weights: str | None = None
    environment: dict[str, Any] = {}
    stages: Annotated[list[Stage], Field(min_length=1)]
    layers: list[Layer] = []
    kernels: list[Kernel] = []
    ceilings: dict[str, float] = {}
    classes: Classes | None = None
    parity: Parity | None = None
    budget: BudgetVerdict | None = None
    training: dict[str, list[Epoch]] = {}
    notes: list[str] = []
    sensitivity: list[Probe] = []

    @property
    def before(self) -> Stage:
        """The baseline."""
        return self.stages[0]

    @property
    def after(self) -> Stage:
        """The artefact as saved."""
        return self.stages[-1]


def read(measurements: Mapping[str, Any], source: str) -> Measurements:
    """Check plain data and give it names.

    Args:
        measurements: the parsed JSON document.
        source: what the error calls it.

    Raises:
        FileError: a key is missing or holds something else than a report can show.
    """
    try:
        return Measurements.model_validate(measurements)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the document"
        found = repr(first["input"])
        shown = found if len(found) <= 60 else f"{found[:57]}..."
        raise FileError(
            f"{source} can't be reported: at {place} stands {shown}, and {first['msg'].lower()}; "
            "write it anew with rarefy compress."
        ) from error
