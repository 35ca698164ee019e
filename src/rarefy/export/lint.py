# SPDX-License-Identifier: Apache-2.0
"""Which multiplications of a file a runtime really computes in integers, told by the runtime's own graph.

Convolutions and matrix products of the file are marked by names; after the runtime has optimised the file for
this machine, its graph is asked which kernel each of them ended in. What stayed float comes with the reason.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from rarefy.export.onnxruntime import INTEGER_NODES, OnnxRuntime
from rarefy.export.product_macs import macs_of
from rarefy.export.runner import Runner
from rarefy.export.session import Program, read_proto
from rarefy.task import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto

    from rarefy.export.openvino import OpenVino

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "DynamicQuantizeLSTM")
CLIPS = ("Relu", "Clip")
MARK = "product"
Kernels: TypeAlias = dict[str, tuple[str, bool, str]]
BLOCKED = "_nchwc"  # ends the names of float convolutions in ONNX Runtime's own layout


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of a file, and how a runtime computes it.

    Attributes:
        layer: path of the layer, told by its weight; else the name of the result.
        operator: of the standard.
        integer: whether integers are multiplied.
        kernel: what the runtime calls it; empty where it was fused beyond recognition.
        reason: why it stayed float; empty if it did not.
        macs: multiply-accumulates for the inputs that it was timed on.
        microseconds: that it took then; None if it was not timed, or the runtime does not tell.
    """

    layer: str
    operator: str
    integer: bool
    kernel: str
    reason: str = ""
    macs: int | None = None
    microseconds: float | None = None


def lint(
    program: Program,
    runtime: str = "onnxruntime",
    threads: int = 1,
    inputs: Inputs | None = None,
) -> list[Product]:
    """Every convolution and matrix product of a file, in order.

    Args:
        program: a model, its bytes, or the path of a file.
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"litert"``.
        threads: of its session.
        inputs: a batch to time each of them on.

    Raises:
        RarefyError: unknown runtime, not installed, or it can't open the file.
    """
    from rarefy.export.runtimes import open_program

    marked = read_proto(program)
    nodes = {}
    for number, node in enumerate(n for n in marked.graph.node if n.op_type in MULTIPLYING):
        node.name = f"{MARK}{number}"
        nodes[node.name] = node
    runner, graph = open_program(marked, runtime, threads=threads), Graph(marked)
    kernels = kernels_of(runner, {name: graph.names(node) for name, node in nodes.items()})
    times: dict[str, float] = {}
    counts: dict[str, int] = {}
    if inputs is not None and (times := runner.node_times(inputs)):
        counts = macs_of(marked, nodes, inputs)
    found = []
    for name, node in nodes.items():
        kernel, integer, place = kernels.get(name, ("", False, ""))  # fused with floats
        reason = "" if integer else graph.reason(node)
        product = Product(graph.layer(node), node.op_type, integer, kernel, reason)
        found.append(replace(product, macs=counts.get(name), microseconds=times.get(place)))
    return found


def kernels_of(runner: Runner, names: Mapping[str, list[str]]) -> Kernels:
    """For marks of nodes the kernel that they became, whether it multiplies integers, and its own name.

    Args:
        runner: of the marked program.
        names: for each mark the values that its kernel may be called after.
    """
    if isinstance(runner, OnnxRuntime):
        return in_onnxruntime(runner, names)
    from rarefy.export.litert_runner import LiteRt
    from rarefy.export.openvino import OpenVino

    if isinstance(runner, OpenVino):
        return in_openvino(runner, names)
    whole = isinstance(runner, LiteRt) and runner.throughout
    return {name: ("int8", True, "") for name in names if whole}


def in_onnxruntime(runner: OnnxRuntime, names: Mapping[str, list[str]]) -> Kernels:
    """`kernels_of` of the optimised graph; what has no mark is called after its result."""
    found, others = {}, {}
    for node in runner.optimised_graph().graph.node:
        mark = node.name.removeprefix("fused ").split("_")[0].split("/")[0]
        kernel = (node.op_type, node.op_type in INTEGER_NODES, node.name)
        if mark.startswith(MARK):
            found[mark] = kernel
        elif node.name.endswith(BLOCKED):
            others[node.name.removesuffix(BLOCKED)] = kernel
    for mark, values in names.items():
        known = [value for value in values if value in others]
        if mark not in found and known:
            found[mark] = others.pop(known[0])
    return found


def in_openvino(runner: "OpenVino", names: Mapping[str, list[str]]) -> Kernels:
    """`kernels_of` of the run-time graph; what gives an output of the file is called after it."""
    from rarefy.export.openvino import MULTIPLYING, in_integers

    found = {}
    called = {values[0]: mark for mark, values in names.items()}
    for facts in runner.executed:
        originals = str(facts.get("originalLayersNames", "")).split(",")
        kernel = f"{facts.get('layerType')} {facts.get('primitiveType')}"
        for name in (part.split("/")[0] for part in originals):
            multiplies = name in called and facts.get("layerType") in MULTIPLYING
            if name.startswith(MARK) or multiplies:
                mark = called[name] if multiplies else name
                found[mark] = (kernel, in_integers(facts), str(facts["name"]))
    return found


class Graph:
    """An ONNX graph with its edges.

    Args:
        proto: the model.
    """

    def __init__(self, proto: "ModelProto") -> None:
        self.makers = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name for tensor in proto.graph.initializer}
        self.ends = {value.name for value in proto.graph.output}

    def names(self, node: Any) -> list[str]:
        """A node's result, and the results of what may be fused behind it, next first."""
        found = [node.output[0]]
        while len(readers := self.readers.get(found[-1], [])) == 1:
            if readers[0].op_type not in (*CLIPS, "Add", "BatchNormalization"):
                break
            found.append(readers[0].output[0])
        return found

    def layer(self, node: Any) -> str:
        """The path of the layer that a weight belongs to, or the name of the node's result."""
        for name in node.input[1:2]:
            for source in self.sources(name):
                if source in self.constants:
                    return source.removesuffix(".weight")
        return str(node.output[0])

    def sources(self, name: str) -> Iterator[str]:
        """A value and what it was dequantised, moved or cast from."""
        yield name
        node = self.makers.get(name)
        while node is not None and node.op_type in ("DequantizeLinear", "Transpose", "Cast", "Pad"):
            yield node.input[0]
            node = self.makers.get(node.input[0])

    def reason(self, node: Any) -> str:
        """Why no integer kernel could take a node's place, as far as the file tells."""
        for place, what in ((0, "what it reads"), (1, "its weight")):
            maker = self.makers.get(node.input[place])
            if maker is None or maker.op_type != "DequantizeLinear":
                by = f"comes from {maker.op_type}" if maker is not None else "has no quantiser"
                return f"{what} is float: it {by}"
        behind = self.behind(node.output[0])
        if behind == "output":
            return "its result leaves the network, and the kernel can't give floats"
        if behind != "QuantizeLinear":
            return f"its result is float: it goes to {behind}"
        return "the runtime has no integer kernel for it on this machine"

    def behind(self, name: str) -> str:
        """The operator that reads a value, a clip looked through; ``"output"`` if it leaves."""
        readers = self.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in CLIPS and name not in self.ends:
            return self.behind(readers[0].output[0])
        if name in self.ends or not readers:
            return "output"
        kinds = [reader.op_type for reader in readers]
        return next((kind for kind in kinds if kind != "QuantizeLinear"), "QuantizeLinear")


def told(products: list[Product], runtime: str) -> list[str]:
    """What a reader of the report should know: how many run in integers, and which don't and why."""
    if not products or not any(product.integer for product in products):
        return []
    floats = [product for product in products if not product.integer]
    done = len(products) - len(floats)
    lines = [
        f"{runtime} computes {done} of {len(products)} convolutions and matrix products in int8"
    ]
    reasons: dict[str, list[str]] = {}
    for product in floats:
        reasons.setdefault(product.reason, []).append(product.layer)
    for reason, layers in reasons.items():
        shown = ", ".join(f"'{layer}'" for layer in layers[:3])
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        lines.append(f"{shown}{more} stayed float in {runtime}: {reason}")
    return lines
