# SPDX-License-Identifier: Apache-2.0
"""Which calls of a network a runtime can compute in integers: one small table for each runtime."""

from dataclasses import dataclass

from rarefy.graph.calls import Call

# Differences in spelling: in place or reflected, dimension in the name, older names.
SPELLINGS = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "rmatmul": "matmul", "bmm": "matmul",
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "concat": "cat", "concatenate": "cat",
    "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool",
    "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool", "avg_pool3d": "avg_pool",
    "addmm": "linear", "relu6": "hardtanh",
}  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """What a runtime's integer kernels ask for, by function name.

    Attributes:
        weighted: kernels with a quantised weight; they read one activation.
        pairwise: kernels that read two or more activations and no weight.
        single: kernels that read one activation.
        float_output: of these, the ones whose result may stay float.
        moving: operators that only move values, so both sides must have the same scale.
        copying: float operators that leave values as they are: their sides share a scale if both have one.
        clipping: operators that vanish into the quantiser behind them.
        joining: pairwise kernels that copy, so that inputs nobody else reads take the scale of the result.
        silent: functions that leave no operator in the exported file.
    """

    weighted: frozenset[str]
    pairwise: frozenset[str]
    single: frozenset[str]
    float_output: frozenset[str]
    moving: frozenset[str]
    copying: frozenset[str]
    clipping: frozenset[str]
    joining: frozenset[str]
    silent: frozenset[str] = frozenset({"dropout", "contiguous", "detach", "clone", "alias"})


# Found by loading quantised operators one by one into ONNX Runtime 1.31 and reading its optimised graph.
ONNXRUNTIME_CPU = Runtime(
    weighted=frozenset({"conv", "linear"}),
    pairwise=frozenset({"add", "mul", "matmul", "cat"}),
    single=frozenset({"avg_pool", "leaky_relu"}),
    float_output=frozenset({"linear", "matmul"}),
    moving=frozenset({
        "max_pool", "flatten", "unflatten", "reshape", "view", "permute", "transpose", "t", "squeeze",
        "unsqueeze", "getitem", "expand", "pixel_shuffle", "interpolate",
    }),
    copying=frozenset({"pad"}),
    clipping=frozenset({"relu", "hardtanh"}),
    joining=frozenset({"cat"}),
)  # fmt: skip


def kind(item: Call) -> str:
    """The function's name, one for all spellings."""
    return SPELLINGS.get(item.function, item.function)


def moves(item: Call, runtime: Runtime) -> bool:
    """Whether a call is an integer operator that only moves values; resizing is if it repeats them."""
    if kind(item) == "interpolate":
        return "interpolate" in runtime.moving and "nearest" in item.arguments
    return kind(item) in runtime.moving


def copies(item: Call, runtime: Runtime) -> bool:
    """Whether a call is a float operator that only copies values; padding is if it adds zeros."""
    value = item.arguments[3] if len(item.arguments) > 3 else None
    return kind(item) in runtime.copying and not value
