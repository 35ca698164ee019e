# SPDX-License-Identifier: Apache-2.0
"""One method of compression as data, and what it may use while it is applied."""

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from rarefy.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rarefy.task import Task

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
OpenFraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Patterns: TypeAlias = str | tuple[str | int, ...]


@dataclass(frozen=True)
class Context:
    """What a step may use. Only `record` is written.

    Attributes:
        task: data, loss and metric.
        teacher: the untouched original network, in eval mode, without gradients.
        device: where the model lives.
        seed: this step's own seed.
        record: what the step wants to be remembered: training curves, chosen ranks, notes.
        folder: where an interrupted training leaves its checkpoint, or None.
        runtime: in which the result will run.
    """

    task: "Task"
    teacher: "nn.Module"
    device: "torch.device"
    seed: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    runtime: str = "onnxruntime"


@dataclass(frozen=True)
class Step:
    """One method: hyper-parameters and ``apply(model, context) -> model``.

    A subclass is a frozen dataclass whose annotations carry the legal ranges; they are checked when an
    instance is made. `apply` may change the model that it is given; only what it returns is valid.

    Class attributes:
        needs: what must be there before the first step runs: ``"train"``, ``"labels"``, ``"calibration"``.
        reads: forms of weights that the step accepts: any of ``"dense"``, ``"mask"``, ``"codebook"``,
            ``"quantised"``.
        writes: the form in which it leaves weights, if it changes it.
        fixes_ranges: whether it leaves activations as integers whose ranges are fixed.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook", "quantised"})
    writes: ClassVar[str | None] = None
    fixes_ranges: ClassVar[bool] = False

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in checked(type(self), values).items():
            object.__setattr__(self, name, value)

    @classmethod
    def key(cls) -> str:
        """The step's name in a recipe: the class name in kebab case, as ``prune-weights``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def settings(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain data."""
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v
            for f in dataclasses.fields(self)
            if differs(f, getattr(self, f.name))
        }

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({given})"

    def apply(self, model: "nn.Module", context: Context) -> "nn.Module":
        """Compresses `model`; the returned network is the only valid one afterwards."""
        raise TypeError(f"{type(self).__name__} defines no apply(model, context)")


def differs(f: "dataclasses.Field[Any]", value: Any) -> bool:
    """Whether a field's value is not its default."""
    return f.default is dataclasses.MISSING or value != f.default


def schema(cls: type[Step]) -> type[BaseModel]:
    """The pydantic model that holds the fields of a step with their legal ranges."""
    return built_schema(cls)  # type: ignore[arg-type] # a class can be hashed, whatever its instances do


@cache
def built_schema(cls: type[Step]) -> type[BaseModel]:
    """Makes what `schema` returns, once for every class."""
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(cls)
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(cls.__name__, __config__=config, **fields)


def checked(cls: type[Step], values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The values of a step's fields after validation.

    Raises:
        RecipeError: an unknown field, or a value out of its range, in one sentence.
    """
    try:
        parsed = schema(cls)(**values)
    except ValidationError as error:
        raise RecipeError(f"{where}{explain(cls, error)}") from None
    return {name: getattr(parsed, name) for name in type(parsed).model_fields}


def explain(cls: type[Step], error: ValidationError) -> str:
    """The first complaint of pydantic in a sentence that names step, field, value and remedy."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "?"
    if first["type"] == "extra_forbidden":
        known = [f.name for f in dataclasses.fields(cls)]
        return f"{cls.key()} has no field '{name}'{nearest(name, known)}"
    if first["type"] == "missing":
        return f"{cls.key()} needs the field '{name}'"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{cls.key()}: {name}={first['input']!r} is not allowed: {message}"
