# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a callable on the same inputs as the network, computed by OpenVINO on the CPU."""

import copy
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rarefy.errors import FileError, ModelError
from rarefy.export.runner import Runner, Slot, fixed_batch
from rarefy.export.session import Program, read_proto, sentence, with_outputs
from rarefy.export.threads import default_threads
from rarefy.task import Inputs

TYPES = {
    "f32": "float", "f16": "float16", "f64": "double", "i64": "int64", "i32": "int32", "i16": "int16",
    "i8": "int8", "u8": "uint8", "boolean": "bool",
}  # fmt: skip
MULTIPLYING = {"Convolution", "FullyConnected", "MatMul", "Deconvolution", "GroupConvolution"}


class OpenVino(Runner):
    """A program in OpenVINO; how it is called is said in `rarefy.export.runner`.

    What stays float is computed in float32: by itself OpenVINO takes bfloat16 or float16 for it where the
    processor has them, so that its "float32" is none, and where weights alone are integers it rounds what
    they multiply to 8 bits on processors with VNNI; neither happens here. One stream, threads as told.

    Args:
        program: a model, its bytes, or the path of a file.
        threads: default: torch's number of threads, at most the cores that are there.
        outputs: names of intermediate values to return after the file's own outputs.
        sizes: of every input by name; default: the file's, axes that it leaves open stay so.

    Raises:
        FileError: the file is missing, damaged or no ONNX file.
        ModelError: OpenVINO is not installed, or has no kernel for an operator.
    """

    name: ClassVar[str] = "openvino"

    def __init__(
        self,
        program: Program,
        *,
        threads: int | None = None,
        outputs: Sequence[str] = (),
        sizes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.threads = threads if threads is not None else default_threads()
        self.program = with_outputs(program, outputs) if outputs else program
        self.sizes = sizes
        self.compiled = compile_program(self.program, self.threads, sizes=sizes)
        self.request = self.compiled.create_infer_request()
        slots = [
            Slot(
                port.get_any_name(),
                TYPES.get(port.get_element_type().get_type_name(), "unknown"),
                tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape()),
            )
            for port in self.compiled.inputs
        ]
        self.inputs = {slot.name: slot for slot in slots}
        self.output_names = [port.get_any_name() for port in self.compiled.outputs]
        self.batch = fixed_batch(slots)

    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """One inference."""
        arrays = [feed[name].numpy() for name in self.inputs]
        try:
            self.request.infer(arrays, share_inputs=True)
        except Exception as error:
            raise ModelError(f"OpenVINO can't run the program: {sentence(error)}") from error
        return [
            torch.from_numpy(self.request.get_output_tensor(i).data.copy())
            for i in range(len(self.output_names))
        ]

    def probe(self, outputs: Sequence[str]) -> Self:
        """The same program, intermediate values returned too."""
        return type(self)(self.program, threads=self.threads, outputs=outputs, sizes=self.sizes)

    def fixed(self, inputs: Inputs) -> "OpenVino":
        """The same program with all axes fixed, which OpenVINO lays out and calls with less work.

        Raises:
            ModelError: the program can't take such inputs.
        """
        if all(port.get_partial_shape().is_static for port in self.compiled.inputs):
            return self
        sizes = {name: tuple(value.shape) for name, value in self.feed(inputs).items()}
        return type(self)(self.program, threads=self.threads, sizes=sizes)

    def node_times(self, inputs: Inputs, rounds: int = 10) -> dict[str, float]:
        """Microseconds by the names in `executed`, told by OpenVINO's counters."""
        twin, times = copy.copy(self), defaultdict[str, list[float]](list)
        more = {"PERF_COUNT": True}
        twin.compiled = compile_program(self.program, self.threads, more, self.sizes)
        twin.request = twin.compiled.create_infer_request()
        for _ in range(rounds):
            twin(inputs)
            for node in twin.request.get_profiling_info():
                times[node.node_name].append(1e6 * node.real_time.total_seconds())
        return {name: median(found) for name, found in times.items()}

    @cached_property
    def executed(self) -> tuple[dict[str, Any], ...]:
        """The nodes that OpenVINO runs, with their run-time facts: ``layerType``, ``primitiveType``, …"""
        nodes = self.compiled.get_runtime_model().get_ordered_ops()
        return tuple(
            {"name": node.get_friendly_name()}
            | {key: plain(value) for key, value in dict(node.get_rt_info()).items()}
            for node in nodes
        )

    @property
    def precision(self) -> str:
        """The arithmetic: ``"int8"`` if integer kernels multiply, else ``"float32"``."""
        integers = any(in_integers(node) for node in self.executed)
        return "int8" if integers else "float32"


def plain(value: Any) -> Any:
    """A run-time fact without OpenVINO's wrapper."""
    return getattr(value, "value", value)


def in_integers(node: Mapping[str, Any]) -> bool:
    """Whether a node of the run-time graph multiplies in integers."""
    return node.get("layerType") in MULTIPLYING and str(node.get("primitiveType")).endswith("_I8")


def compile_program(
    program: Program,
    threads: int,
    more: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """The program, ready to run on the CPU, with `more` settings and `sizes` of inputs if there are any."""
    try:
        import openvino
    except ImportError:
        raise ModelError(
            "the runtime openvino is not installed: pip install 'rarefy[openvino]'"
        ) from None
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        **(more or {}),
    }
    core = openvino.Core()
    if isinstance(program, (str, Path)):
        if not Path(program).is_file():
            raise FileError(f"there is no file '{program}'")
        return opened(core, str(program), settings, f"'{program}'", sizes)
    with tempfile.TemporaryDirectory(prefix="rarefy-") as folder:
        path = Path(folder) / "model.onnx"
        data = read_proto(program, copied=False).SerializeToString()
        path.write_bytes(data)
        return opened(core, str(path), settings, "the program", sizes)


def opened(
    core: Any,
    path: str,
    settings: dict[str, Any],
    called: str,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """Reads and compiles a file.

    Raises:
        FileError: it is no ONNX file.
        ModelError: it has something that OpenVINO can't run.
    """
    try:
        model = core.read_model(path)
    except Exception as error:
        text = sentence(error)
        if "fully converted" in text or "not supported" in text:
            reason = text.partition("Summary: ")[2] or text
            raise ModelError(f"OpenVINO can't run {called}: {reason}") from error
        raise FileError(f"{called} is no ONNX file that OpenVINO reads: {text}") from error
    try:
        if sizes is not None:
            model.reshape({name: list(size) for name, size in sizes.items()})
        return core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise ModelError(f"OpenVINO can't run {called}: {sentence(error)}") from error
