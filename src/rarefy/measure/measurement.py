# SPDX-License-Identifier: Apache-2.0
"""What a network costs and how well it does, as it stands in ``measurements.json``."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarefy.errors import FileError
from rarefy.measure.latency import Latency
from rarefy.measure.quality import Quality

if TYPE_CHECKING:
    from torch import nn

    from rarefy.task import Inputs


@dataclass(frozen=True)
class Timing:
    """The latency of a stage.

    Attributes:
        runtime: what ran it: ``"onnxruntime"``, ``"pytorch"``.
        batch: examples in a call.
        threads: of the runtime.
        median: milliseconds of wall time.
        iqr: first and third quartile of it.
        cpu_median: milliseconds of processor time.
        ratio_to_baseline: time over the baseline's, measured side by side; None for the baseline alone.
        ratio_iqr: first and third quartile of that ratio.
        precision: of the arithmetic.
    """

    runtime: str
    batch: int
    threads: int
    median: float
    iqr: tuple[float, float]
    cpu_median: float | None = None
    ratio_to_baseline: float | None = None
    ratio_iqr: tuple[float, float] | None = None
    precision: str = "float32"

    @classmethod
    def of(cls, found: Latency, runtime: str, precision: str = "float32") -> "Timing":
        """From a measurement of `rarefy.measure.latency.latency`."""
        return cls(
            runtime,
            found.batch,
            found.threads,
            found.median,
            found.iqr,
            found.cpu_median,
            found.ratio,
            found.ratio_iqr,
            precision,
        )


@dataclass(frozen=True)
class Measurement:
    """One stage of a compression.

    Attributes:
        name: ``"baseline"``, the step as written, ``"artefact"``.
        quality: the metric, or None if it was not evaluated.
        through: what evaluated it: ``"pytorch"`` or a runtime.
        parameters, nonzero: weights, and those that are not zero.
        macs: multiply-accumulates for one example; None if unknown.
        bytes: of the saved files, by kind.
        latency: None if it was not measured.
        memory_bytes: peak of one call; None if it was not measured.
        seconds: that the step took.
    """

    name: str
    quality: Quality | None
    parameters: int
    nonzero: int
    macs: int | None
    bytes: dict[str, int]
    through: str = "pytorch"
    latency: Timing | None = None
    memory_bytes: int | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """One object of ``stages`` in ``measurements.json``."""
        quality = self.quality
        return {
            "name": self.name,
            "metric": quality
            and {
                "name": quality.name,
                "value": quality.value,
                "higher_is_better": quality.higher_is_better,
                "through": self.through,
                "examples": quality.examples,
            },
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "macs": self.macs,
            "bytes": dict(self.bytes),
            "latency_ms": self.latency and plain(dataclasses.asdict(self.latency)),
            "memory_bytes": self.memory_bytes,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, stage: Mapping[str, Any]) -> "Measurement":
        """The inverse of `as_dict`; a confusion matrix is not kept.

        Raises:
            FileError: a key is missing, or the latency has an unknown one.
        """
        try:
            metric, timing = stage["metric"], stage["latency_ms"]
            return cls(
                name=stage["name"],
                quality=metric
                and Quality(
                    metric["name"],
                    metric["value"],
                    metric.get("higher_is_better", True),
                    metric.get("examples", 0),
                ),
                through=metric["through"] if metric else "pytorch",
                parameters=stage["parameters"],
                nonzero=stage["nonzero"],
                macs=stage["macs"],
                bytes=dict(stage["bytes"]),
                latency=timing and Timing(**{k: paired(v) for k, v in timing.items()}),
                memory_bytes=stage.get("memory_bytes"),
                seconds=stage["seconds"],
            )
        except (KeyError, TypeError) as error:
            raise FileError(
                f"the stage '{stage.get('name', '?')}' is no measurement: {error}; measure again"
            ) from error


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def paired(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def bytes_of(model: "nn.Module", example: "Inputs") -> dict[str, int]:
    """Sizes of the files that the network would be saved in now, its weights finished.

    Everything is written into a temporary folder and removed; the model stays as it is.

    Returns:
        ``safetensors`` (all tensors of the state, shared ones once), ``onnx`` and ``rfy`` (the ONNX file
        coded without loss).

    Raises:
        ModelError: the network can't be exported.
    """
    from safetensors.torch import save_file

    from rarefy.export.finished import finished
    from rarefy.export.onnx import export_onnx, save_onnx
    from rarefy.store.pack import pack

    with tempfile.TemporaryDirectory() as folder:
        tensors, program, coded = (
            Path(folder) / f"m.{kind}" for kind in ("safetensors", "onnx", "rfy")
        )
        state = finished(model).state_dict(keep_vars=True)
        once = {id(tensor): name for name, tensor in reversed(state.items())}
        save_file({n: state[n].detach().contiguous() for n in once.values()}, str(tensors))
        return {
            "safetensors": tensors.stat().st_size,
            "onnx": save_onnx(export_onnx(model, example), program),
            "rfy": pack(program, coded),
        }
