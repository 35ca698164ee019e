# SPDX-License-Identifier: Apache-2.0
"""On what machine and with what versions something was measured."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "constriction")
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)


def environment(threads: int, precision: str = "float32") -> dict[str, Any]:
    """Versions, processor, threads and the arithmetic of the runtime, as plain data.

    Args:
        threads: that the measurements were pinned to.
        precision: in which the runtime multiplies what is not quantised.
    """
    import rarefy

    facts = processor()
    return {
        "rarefy": rarefy.__version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "platform": platform.platform(terse=True),
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(
            name for name in INSTRUCTIONS if name in facts.get("flags", "").split()
        ),
        "cores": os.cpu_count(),
        "threads": threads,
        "precision": precision,
    }


def installed(name: str) -> str:
    """The version of a package, or "none"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def processor() -> dict[str, str]:
    """What Linux says of its first processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip().replace("Features", "flags"): value.strip() for name, _, value in pairs}
