# SPDX-License-Identifier: Apache-2.0
"""On what a measurement was made."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from rarefy import __version__
from rarefy.export.runtimes import DISTRIBUTIONS
from rarefy.export.threads import available_cores, default_threads

PROCESSOR = Path("/proc/cpuinfo")
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")
# instruction sets that decide how fast, and for 8 bits how exactly, networks are multiplied
INSTRUCTIONS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def environment(threads: int | None = None, runtime: str = "onnxruntime") -> dict[str, Any]:
    """Versions, processor and settings, as they stand in measurements.json.

    Args:
        threads: that the measurements used; default `default_threads()`.
        runtime: the one used; its version is told too.

    Returns:
        ``python``, ``rarefy``, ``torch``, ``onnx``, ``onnxruntime``, ``numpy`` (versions), ``platform``,
        ``processor``, ``cores`` (usable), ``threads``, ``precision`` (of the runtime's arithmetic on float
        networks, pinned in every runtime), ``instructions`` (those of the processor that matter here).
    """
    described = processor_lines()
    known = described.get("flags", described.get("Features", "")).split()
    return {
        "python": platform.python_version(),
        "rarefy": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        runtime: importlib.metadata.version(DISTRIBUTIONS.get(runtime, runtime)),
        "platform": platform.platform(),
        "processor": described.get("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "threads": threads if threads is not None else default_threads(),
        "precision": "float32",
        "instructions": [name for name in INSTRUCTIONS if name in known],
    }


def processor_lines() -> dict[str, str]:
    """What the kernel says about the first processor; empty where there is no /proc/cpuinfo."""
    try:
        text = PROCESSOR.read_text()
    except OSError:
        return {}
    first = text.split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
