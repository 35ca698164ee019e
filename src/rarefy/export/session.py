# SPDX-License-Identifier: Apache-2.0
"""Opening an ONNX file in ONNX Runtime: silent, on so many threads, with errors that say what is wrong."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from rarefy.errors import FileError, ModelError
from rarefy.measure.memory import give_back

if TYPE_CHECKING:
    from onnx import ModelProto

LARGE = 1 << 24  # bytes

Program: TypeAlias = Union["ModelProto", bytes, str, Path]


def session_options(threads: int, exact: bool = False) -> Any:
    """Options of a silent session on so many threads that leaves the cores idle between its runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # threads that wait busily would slow down whatever is measured next to this session
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def large(program: str | Path) -> bool:
    """Whether a file is so large that it counts how often its content is in memory."""
    path = Path(program)
    return path.is_file() and path.stat().st_size >= LARGE


def open_large(program: str | Path, threads: int, exact: bool) -> tuple[Any, "ModelProto"]:
    """A session of a large file in two steps, neither of which needs the weights more than once.

    ONNX Runtime holds a file's content, the weights in it and what its optimisations make of them all at
    once: up to three times the file. Here the weights are mapped where they stand in the file. The first step
    fuses operators and writes the result to disk, the second maps that and lays weights out for the
    processor. Operators, arithmetic and speed are those of a session opened directly.

    Returns:
        The session, and the graph after the first step without its weights.

    Raises:
        FileError, ModelError: as `OnnxRuntime`.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="rarefy-", ignore_cleanup_errors=True) as folder:
        fused = Path(folder) / "fused.onnx"
        give_back()
        write_optimised(program, fused, session_options(threads, exact), everything=False)
        give_back()
        session = open_session(fused, session_options(threads, exact), str(program))
        return session, onnx.load(str(fused), load_external_data=False)


def write_optimised(program: str | Path, path: Path, options: Any, *, everything: bool) -> None:
    """Lets ONNX Runtime optimise a file into `path` and, for the weights, into a second file beside it.

    Args:
        program: whose weights are mapped, not read.
        path: of the result.
        options: of a session; changed.
        everything: whether weights are laid out for this processor as well.

    Raises:
        FileError, ModelError: as `OnnxRuntime`.
    """
    import onnxruntime
    from onnx.external_data_helper import set_external_data

    from rarefy.store.onnx_file import LEAST, read_model

    file = Path(program).resolve()
    model, data = read_model(file)
    for place, found in data.items():
        tensor = model.graph.initializer[place]
        set_external_data(tensor, file.name, found.offset, found.size)
        tensor.ClearField("raw_data")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if everything else levels.ORT_ENABLE_EXTENDED
    )
    options.optimized_model_filepath = str(path)
    for key, value in {
        "session.model_external_initializers_file_folder_path": str(file.parent),
        "session.optimized_model_external_initializers_file_name": f"{path.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(LEAST),
        "session.disable_prepacking": "1",
    }.items():
        options.add_session_config_entry(key, value)
    open_session(model.SerializeToString(), options, str(program))


def open_session(program: Program, options: Any, called: str | None = None) -> Any:
    """A session on the CPU.

    Args:
        program: to open.
        options: of the session.
        called: the file that errors are to name; default: the program's own.

    Raises:
        FileError, ModelError: as `OnnxRuntime`.
    """
    import onnxruntime

    if isinstance(program, (str, Path)):
        if not Path(program).is_file():
            raise FileError(f"there is no file '{program}'")
        source: Any = str(program)
    else:
        source = program if isinstance(program, bytes) else program.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        file = called or (str(program) if isinstance(program, (str, Path)) else None)
        name = f"'{file}'" if file else "the program"
        raise reason(name, error) from error


def reason(name: str, error: Exception) -> FileError | ModelError:
    """The right error for what ONNX Runtime complained about."""
    import onnxruntime

    text, version = sentence(error), f"ONNX Runtime {onnxruntime.__version__}"
    if "No Op registered" in text or "No opset import" in text or "not a registered" in text:
        return ModelError(f"{name} has an operator that {version} does not know: {text}")
    if "under development" in text or "IR version" in text:
        return ModelError(f"{name} is of a later version than {version} reads: {text}")
    return FileError(f"{name} is no ONNX file that {version} can run: {text}")


def sentence(error: Exception) -> str:
    """The complaint without ONNX Runtime's prefixes and source lines."""
    text = " ".join(str(error).split())
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)[:300]


def with_outputs(program: Program, outputs: Sequence[str]) -> "ModelProto":
    """A copy of a program that also returns intermediate values.

    Raises:
        FileError: the file can't be read.
        ModelError: no node computes such a value.
    """
    import onnx

    proto = read_proto(program)
    computed = {name for node in proto.graph.node for name in node.output}
    unknown = [name for name in outputs if name not in computed]
    if unknown:
        raise ModelError(f"no node of the program computes '{unknown[0]}'")
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in dict.fromkeys(outputs)
        if name not in known
    )
    return proto


def read_proto(program: Program, *, copied: bool = True) -> "ModelProto":
    """A model that may be changed: a copy, unless none is wanted, or what the bytes or the file hold.

    Raises:
        FileError: they hold no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if isinstance(program, onnx.ModelProto):
        if not copied:
            return program
        copy = onnx.ModelProto()
        copy.CopyFrom(program)
        return copy
    try:
        data = program if isinstance(program, bytes) else Path(program).read_bytes()
        return onnx.load_from_string(data)
    except (OSError, DecodeError) as error:
        name = "the program" if isinstance(program, bytes) else f"'{program}'"
        raise FileError(f"{name} is no readable ONNX file: {error}") from error
