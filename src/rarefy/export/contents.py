# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file holds, counted without running it."""

from pathlib import Path
from typing import Any

import numpy as np


def program_counts(path: Path) -> dict[str, Any]:
    """Weights of an ONNX file: how many, how many are not zero, their bytes as float32.

    Counted are floating-point and 8-bit initialisers of two or more axes and the one-axis ones that are
    floating point; an integer weight counts as zero where it equals its zero point of 0.
    """
    from rarefy.store.onnx_arrays import initializer_arrays

    graph, arrays = initializer_arrays(path)
    scales = {
        name for node in graph.node if "quantize" in node.op_type.lower() for name in node.input[1:]
    }
    total = nonzero = 0
    for name, array in arrays:
        weight = array.dtype.kind == "f" or (array.dtype.itemsize == 1 and array.ndim >= 2)
        if weight and name not in scales:
            total, nonzero = total + array.size, nonzero + int(np.count_nonzero(array))
    return {"parameters": total, "nonzero": nonzero, "float32_bytes": 4 * total}
