# SPDX-License-Identifier: Apache-2.0
"""The runtimes by name: what opens a program, and what must be installed for it."""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rarefy.errors import RarefyError, nearest

if TYPE_CHECKING:
    from rarefy.export.runner import Runner
    from rarefy.export.session import Program

# name: package that is imported, what opens a program, the extra that installs it
RUNTIMES: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("onnxruntime", "rarefy.export.onnxruntime:OnnxRuntime", ""),
    "openvino": ("openvino", "rarefy.export.openvino:OpenVino", "openvino"),
    "litert": ("ai_edge_litert", "rarefy.export.litert_runner:LiteRt", "litert"),
}
THROUGHOUT = frozenset({"litert"})
"""Runtimes that open networks of integers from end to end, and no others."""

DISTRIBUTIONS = {"litert": "ai-edge-litert"}
"""Names under which runtimes are installed, where they are not the runtimes' own."""


def check_runtime(name: str) -> None:
    """Refuses a runtime that does not exist or is not installed; imports nothing heavy.

    Raises:
        RarefyError: says what to install.
    """
    if name not in RUNTIMES:
        raise RarefyError(f"there is no runtime '{name}'{nearest(name, RUNTIMES)}")
    package, _, extra = RUNTIMES[name]
    if find_spec(package) is None:
        raise RarefyError(f"runtime '{name}' is not installed: pip install 'rarefy[{extra}]'")


def open_program(
    program: "Program", runtime: str = "onnxruntime", *, threads: int | None = None
) -> "Runner":
    """A program in a runtime.

    Args:
        program: a model, its bytes, or the path of a file.
        runtime: a key of `RUNTIMES`.
        threads: default: torch's number of threads, at most the cores that are there.

    Raises:
        RarefyError: unknown runtime, or not installed.
        FileError, ModelError: the file can't be opened.
    """
    check_runtime(runtime)
    module, _, name = RUNTIMES[runtime][1].partition(":")
    runner: type[Runner] = getattr(importlib.import_module(module), name)
    return runner(program, threads=threads)  # type: ignore[call-arg]
