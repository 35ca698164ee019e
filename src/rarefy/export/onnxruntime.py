# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a callable on the same inputs as the network, computed by ONNX Runtime on the CPU."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rarefy.errors import ModelError
from rarefy.export.session import (
    Program,
    could_saturate,
    large,
    open_large,
    open_session,
    sentence,
    session_options,
    with_outputs,
    write_optimised,
)
from rarefy.export.threads import default_threads
from rarefy.task import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
INTEGER_NODES = {
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention",
}  # fmt: skip


class OnnxRuntime:
    """A program that answers like the network: tensors in, tensors out.

    It is called with a tensor, with several, with a tuple or a mapping of them; one output comes back as a
    tensor, several as a tuple. Inputs are cast to the declared types (an integer where a float is wanted, a
    double where a single one is). A file with a fixed batch size takes any batch: it is cut into pieces, the
    last one padded.

    Args:
        program: a model, its bytes, or the path of a file.
        threads: of the session; default: torch's number of threads, at most the cores that are there.
        outputs: names of intermediate values to return after the file's own outputs.
        exact: whether int8 weights beyond +-64 are multiplied as uint8 where the processor would cut off the
            sum of two products at 32,767 (x86 without VNNI). ONNX Runtime's own default is to cut off: pass
            False to see what a user gets who doesn't set its option ``session.x64quantprecision``.

    Attributes:
        threads: with which the session runs.
        exact: whether that option is set, which it is where it makes a difference.
        input_names, output_names: in order.

    Raises:
        FileError: the file is missing, damaged or no ONNX file.
        ModelError: a version of the standard or an operator that this ONNX Runtime does not know.

    Examples:
        >>> import torch
        >>> from rarefy.export.onnx import export_onnx
        >>> net, x = torch.nn.Linear(4, 2), torch.randn(3, 4)
        >>> OnnxRuntime(export_onnx(net, x))(x).shape
        torch.Size([3, 2])
    """

    name = "onnxruntime"

    def __init__(
        self,
        program: Program,
        *,
        threads: int | None = None,
        outputs: Sequence[str] = (),
        exact: bool = True,
    ) -> None:
        self.threads = threads if threads is not None else default_threads()
        self.program = with_outputs(program, outputs) if outputs else program
        self.exact = exact and could_saturate(self.program)
        self.fused: ModelProto | None = None
        if isinstance(self.program, (str, Path)) and large(self.program):
            self.session, self.fused = open_large(self.program, self.threads, self.exact)
        else:
            self.session = open_session(self.program, session_options(self.threads, self.exact))
        self.inputs: dict[str, Any] = {i.name: i for i in self.session.get_inputs()}
        self.input_names = list(self.inputs)
        self.output_names = [o.name for o in self.session.get_outputs()]
        self.batch = fixed_batch(list(self.inputs.values()))

    def __call__(self, *values: Any, **named: Tensor) -> Any:
        """The outputs for a batch.

        Raises:
            ModelError: an input is missing, unknown, or of a shape or type that the file does not take.
        """
        given: Any = values[0] if len(values) == 1 and not named else values
        feed = self.feed(given if not named else named | dict(zip(self.input_names, values)))  # noqa: B905
        size = min((len(v) for v in feed.values() if v.dim()), default=0)
        if self.batch is None or size == self.batch:
            results = self.run(feed)
        else:
            results = self.in_pieces(feed, size, self.batch)
        return results[0] if len(results) == 1 else tuple(results)

    def feed(self, given: Inputs) -> dict[str, Tensor]:
        """The inputs by name, in the types that the file declares."""
        if isinstance(given, Mapping):
            named = dict(given)
        else:
            several = (given,) if isinstance(given, Tensor) else tuple(given)
            if len(several) != len(self.inputs):
                raise ModelError(
                    f"the program takes {len(self.inputs)} inputs ({', '.join(self.inputs)}); "
                    f"it was given {len(several)}"
                )
            named = dict(zip(self.inputs, several, strict=True))
        for name in (*self.inputs, *named):
            if name not in named or name not in self.inputs:
                raise ModelError(
                    f"the program takes the inputs {', '.join(self.inputs)}; "
                    f"it was given {', '.join(named) or 'none'}"
                )
        return {name: cast(value, self.inputs[name]) for name, value in named.items()}

    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """One run of the session."""
        arrays = {name: value.numpy() for name, value in feed.items()}
        try:
            results = self.session.run(None, arrays)
        except Exception as error:
            raise ModelError(f"ONNX Runtime can't run the program: {sentence(error)}") from error
        return [torch.from_numpy(result) for result in results]

    def in_pieces(self, feed: Mapping[str, Tensor], size: int, batch: int) -> list[Tensor]:
        """Runs `size` examples through a program that takes exactly `batch` at a time."""
        pieces = []
        for start in range(0, size, batch):
            rows = torch.arange(start, start + batch).clamp(max=size - 1)
            pieces.append(self.run({name: value[rows] for name, value in feed.items()}))
        return [torch.cat(parts)[:size] for parts in zip(*pieces, strict=True)]

    def optimised_graph(self) -> "ModelProto":
        """The graph as ONNX Runtime runs it on this machine: fused, folded, in its own operators.

        Of a large file the graph comes without its weights.
        """
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            options = session_options(self.threads, self.exact)
            if isinstance(self.program, (str, Path)) and large(self.program):
                write_optimised(self.program, path, options, everything=True)
                return onnx.load(str(path), load_external_data=False)
            options.optimized_model_filepath = str(path)
            open_session(self.program, options)
            return onnx.load(str(path))

    @cached_property
    def counts(self) -> Counter[str]:
        """How many nodes of each type the optimised graph has."""
        return Counter(node.op_type for node in self.optimised_graph().graph.node)

    def node_counts(self) -> dict[str, int]:
        """How many nodes of each type ONNX Runtime runs: ``{"QLinearConv": 19, "QGemm": 1, …}``."""
        return dict(self.counts)

    @property
    def precision(self) -> str:
        """The arithmetic: ``"int8"`` if integer operators multiply, else ``"float32"``.

        The CPU provider computes float16 files in float32 too: it casts around its operators.
        """
        fused = self.fused  # integer operators come with fusing, the layout changes none
        kinds = {node.op_type for node in fused.graph.node} if fused else set(self.counts)
        return "int8" if INTEGER_NODES & kinds else "float32"


def fixed_batch(inputs: Sequence[Any]) -> int | None:
    """The batch size that a file insists on, or None."""
    sizes = {i.shape[0] for i in inputs if i.shape}
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) and only > 0 else None


def cast(value: Tensor, declared: Any) -> Tensor:
    """`value` on the CPU in the declared type.

    Raises:
        ModelError: a float where an integer is declared, or a type that torch does not have.
    """
    wanted = TYPES.get(declared.type)
    if wanted is None or (value.is_floating_point() and not wanted.is_floating_point):
        raise ModelError(
            f"input '{declared.name}' is {str(value.dtype).removeprefix('torch.')}, but the program "
            f"takes {declared.type.removeprefix('tensor(').removesuffix(')')}; convert it"
        )
    return value.detach().to("cpu", wanted).contiguous()
