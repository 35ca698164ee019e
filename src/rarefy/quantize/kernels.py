# SPDX-License-Identifier: Apache-2.0
"""Which calls of a network a runtime can compute in integers: one small table for each runtime."""

from dataclasses import dataclass, replace

from rarefy.errors import RecipeError, nearest
from rarefy.forms.grid import Grid
from rarefy.graph.calls import Call

# Differences in spelling: in place or reflected, dimension in the name, older names.
SPELLINGS = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "rmatmul": "matmul", "bmm": "matmul",
    "conv1d": "conv", "conv2d": "conv", "conv3d": "conv", "concat": "cat", "concatenate": "cat",
    "max_pool1d": "max_pool", "max_pool2d": "max_pool", "max_pool3d": "max_pool",
    "avg_pool1d": "avg_pool", "avg_pool2d": "avg_pool", "avg_pool3d": "avg_pool",
    "addmm": "linear", "relu6": "hardtanh",
}  # fmt: skip

UINT8 = Grid(8, signed=False, symmetric=False)


@dataclass(frozen=True)
class Runtime:
    """What a runtime's integer kernels ask for, by function name.

    Attributes:
        name: of the runtime.
        weighted: kernels with a quantised weight; they read one activation.
        pairwise: kernels that read two or more activations and no weight.
        single: kernels that read one activation.
        float_output: of these, the ones whose result may stay float.
        float_clips: whether a result may also stay float where a clip follows.
        quantised_ends: whether what leaves the network is rounded like all else.
        moving: operators that only move values, so both sides must have the same scale.
        copying: float operators that leave values as they are: their sides share a scale if both have one.
        clipping: operators that vanish into the quantiser behind them.
        joining: pairwise kernels that copy, so that inputs nobody else reads take the scale of the result.
        silent: functions that leave no operator in the exported file.
        absorbed: operators that become part of the kernels in `weighted` that alone read their result.
        normalising: float operators whose result other float operators read before it is rounded for integer
            kernels: what a transformer's residual stream adds up needs more than 8 bits.
        activations: the integers of activations.
        looks_up: whether rows of 8-bit tables are looked up as codes.
        bias: ``"int32"`` or ``"float"``, as kernels take it.
        scale_bits: 16 if scales of weights may come out of a cast when the file is loaded, else 32.
    """

    name: str
    weighted: frozenset[str]
    pairwise: frozenset[str]
    single: frozenset[str]
    float_output: frozenset[str]
    moving: frozenset[str]
    copying: frozenset[str]
    clipping: frozenset[str]
    joining: frozenset[str]
    silent: frozenset[str] = frozenset({"dropout", "contiguous", "detach", "clone", "alias"})
    absorbed: frozenset[str] = frozenset({"pad"})
    normalising: frozenset[str] = frozenset({"layer_norm", "rms_norm"})
    float_clips: bool = True
    quantised_ends: bool = False
    activations: Grid = UINT8
    looks_up: bool = False
    bias: str = "int32"
    scale_bits: int = 16


MOVING = frozenset({
    "max_pool", "flatten", "unflatten", "reshape", "view", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "getitem", "expand", "pixel_shuffle", "interpolate", "chunk", "split",
})  # fmt: skip

# Found by loading quantised operators one by one into ONNX Runtime 1.31 and reading its optimised graph.
ONNXRUNTIME_CPU = Runtime(
    "onnxruntime",
    weighted=frozenset({"conv", "linear"}),
    pairwise=frozenset({"add", "mul", "matmul", "cat"}),
    single=frozenset({"avg_pool", "leaky_relu"}),
    float_output=frozenset({"linear", "matmul"}),
    moving=MOVING,
    copying=frozenset({"pad"}),
    clipping=frozenset({"relu", "hardtanh"}),
    joining=frozenset({"cat"}),
    float_clips=False,
    looks_up=True,
)

# Its kernels give floats where nothing quantises their result, so a sum reads the convolution before it
# unrounded and is computed inside it. A maximum over axes must read integers: OpenVINO 2026.4 computes a
# float one wrongly once the quantiser behind has become part of it.
OPENVINO = replace(
    ONNXRUNTIME_CPU,
    name="openvino",
    pairwise=frozenset({"matmul", "cat"}),
    single=frozenset({"avg_pool", "amax"}),
    float_output=frozenset({"conv", "linear", "matmul", "cat", "avg_pool", "amax"}),
    float_clips=True,
)

# Signed and symmetric throughout; biases stay float and scales are constants, its parser takes no others.
TENSORRT = replace(
    ONNXRUNTIME_CPU,
    name="tensorrt",
    looks_up=False,
    pairwise=frozenset({"add", "matmul"}),
    single=frozenset({"avg_pool"}),
    float_output=frozenset({"conv", "linear", "matmul", "add", "avg_pool"}),
    float_clips=True,
    activations=Grid(8, signed=True, symmetric=True),
    bias="float",
    scale_bits=32,
)

# Every kernel is an integer kernel, on both sides; pools keep the scale of what they read.
LITERT = replace(
    ONNXRUNTIME_CPU,
    name="litert",
    looks_up=False,
    single=frozenset({"leaky_relu", "mean"}),
    float_output=frozenset(),
    moving=MOVING | {"avg_pool"},
    normalising=frozenset(),
    quantised_ends=True,
    activations=Grid(8, signed=True, symmetric=False),
)
TABLES = {table.name: table for table in (ONNXRUNTIME_CPU, OPENVINO, TENSORRT, LITERT)}


def table_of(name: str) -> Runtime:
    """The kernels of a runtime.

    Raises:
        RecipeError: there is no table for it.
    """
    if name not in TABLES:
        raise RecipeError(f"there is no table of kernels for '{name}'{nearest(name, TABLES)}")
    return TABLES[name]


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


def passes(item: Call, runtime: Runtime) -> bool:
    """Whether a call only moves, copies or clips what it reads."""
    return moves(item, runtime) or copies(item, runtime) or kind(item) in runtime.clipping


def gives_floats(item: Call, clipped: bool, runtime: Runtime) -> bool:
    """Whether the kernel of a call can leave its result float, where it is clipped or not."""
    return kind(item) in runtime.float_output and (runtime.float_clips or not clipped)


def absorbs(item: Call, readers: list[Call], runtime: Runtime) -> bool:
    """Whether zeros put around a tensor become the padding of the convolutions that alone read it."""
    if kind(item) not in runtime.absorbed or not copies(item, runtime):
        return False
    widths = item.arguments[1] if len(item.arguments) > 1 else ()
    mode = item.arguments[2] if len(item.arguments) > 2 else "constant"
    spatial = isinstance(widths, (tuple, list)) and len(widths) <= 2 * (len(item.shapes[0]) - 2)
    return (
        spatial
        and mode == "constant"
        and all(isinstance(w, int) and w >= 0 for w in widths)
        and all(kind(reader) == "conv" and numeric(reader) for reader in readers)
        and bool(readers)
    )


def numeric(item: Call) -> bool:
    """Whether a convolution's own padding is given in numbers, not as a word."""
    return not any(isinstance(argument, str) for argument in item.arguments)
