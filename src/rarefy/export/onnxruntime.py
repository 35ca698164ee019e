# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a callable on the same inputs as the network, computed by ONNX Runtime on the CPU."""

import copy
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from rarefy.errors import ModelError
from rarefy.export.overflow import could_saturate
from rarefy.export.runner import Runner, Slot, fixed_batch
from rarefy.export.session import (
    Program,
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

TIMED = "_kernel_time"
INTEGER_NODES = {
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
    "QAttention",
}  # fmt: skip


class OnnxRuntime(Runner):
    """A program in ONNX Runtime; how it is called is said in `rarefy.export.runner`.

    Args:
        program: a model, its bytes, or the path of a file.
        threads: of the session; default: torch's number of threads, at most the cores that are there.
        outputs: names of intermediate values to return after the file's own outputs.
        exact: whether int8 weights are multiplied as uint8 where the processor would cut off the sum of two
            products at 32,767 (x86 without VNNI; see `rarefy.forms.pairs`). ONNX Runtime's own default is to
            cut off: pass False to see what a user gets who doesn't set its option
            ``session.x64quantprecision``.

    Attributes:
        exact: whether that option is set, which it is where it makes a difference.

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

    name: ClassVar[str] = "onnxruntime"

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
        self.inputs = {
            i.name: Slot(i.name, i.type.removeprefix("tensor(").removesuffix(")"), tuple(i.shape))
            for i in self.session.get_inputs()
        }
        self.output_names = [o.name for o in self.session.get_outputs()]
        self.batch = fixed_batch(list(self.inputs.values()))

    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """One run of the session."""
        arrays = {name: value.numpy() for name, value in feed.items()}
        try:
            results = self.session.run(None, arrays)
        except Exception as error:
            raise ModelError(f"ONNX Runtime can't run the program: {sentence(error)}") from error
        return [torch.from_numpy(result) for result in results]

    def probe(self, outputs: Sequence[str]) -> Self:
        """The same session, intermediate values returned too."""
        return type(self)(self.program, threads=self.threads, outputs=outputs, exact=self.exact)

    def node_times(self, inputs: Inputs, rounds: int = 10) -> dict[str, float]:
        """Microseconds by the names of the optimised graph, told by ONNX Runtime's profile."""
        times = defaultdict[str, list[float]](list)
        options = session_options(self.threads, self.exact)
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="rarefy-") as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            twin = copy.copy(self)
            twin.session = open_session(self.program, options)
            for _ in range(rounds):
                twin(inputs)
            profile = Path(twin.session.end_profiling()).read_text(encoding="utf-8")
        for event in json.loads(profile):
            name = str(event["name"])
            if event.get("cat") == "Node" and name.endswith(TIMED):
                times[name.removesuffix(TIMED)].append(event["dur"])
        return {name: median(found) for name, found in times.items()}

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
