# SPDX-License-Identifier: Apache-2.0
"""Which multiplications of a file a runtime really computes in integers, told by the runtime's own graph.

Convolutions and matrix products of the file are marked by names; after the runtime has optimised the file for
this machine, its graph is asked which kernel each of them ended in. What stayed float comes with the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rarefy.export.onnxruntime import INTEGER_NODES, OnnxRuntime
from rarefy.export.runner import Runner
from rarefy.export.session import Program, read_proto

if TYPE_CHECKING:
    from onnx import ModelProto

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "DynamicQuantizeLSTM")
CLIPS = ("Relu", "Clip")
MARK = "product"


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of a file, and how a runtime computes it.

    Attributes:
        layer: path of the layer, told by its weight; else the name of the result.
        operator: of the standard.
        integer: whether integers are multiplied.
        kernel: what the runtime calls it; empty where it was fused beyond recognition.
        reason: why it stayed float; empty if it did not.
    """

    layer: str
    operator: str
    integer: bool
    kernel: str
    reason: str = ""


def lint(program: Program, runtime: str = "onnxruntime", threads: int = 1) -> list[Product]:
    """Every convolution and matrix product of a file, in order.

    Args:
        program: a model, its bytes, or the path of a file.
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"litert"``.
        threads: of its session.

    Raises:
        RarefyError: unknown runtime, not installed, or it can't open the file.
    """
    from rarefy.export.runtimes import open_program

    marked = read_proto(program)
    nodes = {}
    for number, node in enumerate(n for n in marked.graph.node if n.op_type in MULTIPLYING):
        node.name = f"{MARK}{number}"
        nodes[node.name] = node
    kernels = kernels_of(open_program(marked, runtime, threads=threads))
    graph = Graph(marked)
    found = []
    for name, node in nodes.items():
        kernel, integer = kernels.get(name, ("", False))  # fused with floats
        reason = "" if integer else graph.reason(node)
        found.append(Product(graph.layer(node), node.op_type, integer, kernel, reason))
    return found


def kernels_of(runner: Runner) -> dict[str, tuple[str, bool]]:
    """For marked nodes the kernel that they became, and whether it multiplies integers."""
    found: dict[str, tuple[str, bool]] = {}
    if isinstance(runner, OnnxRuntime):
        for node in runner.optimised_graph().graph.node:
            mark = node.name.split("_")[0].split("/")[0]
            if mark.startswith(MARK):
                found[mark] = (node.op_type, node.op_type in INTEGER_NODES)
        return found
    from rarefy.export.openvino import OpenVino, in_integers

    if isinstance(runner, OpenVino):
        for facts in runner.executed:
            names = str(facts.get("originalLayersNames", "")).split(",")
            for name in (part.split("/")[0] for part in names):
                if name.startswith(MARK):
                    kernel = f"{facts.get('layerType')} {facts.get('primitiveType')}"
                    found[name] = (kernel, in_integers(facts))
        return found
    from rarefy.export.litert_runner import LiteRt

    if isinstance(runner, LiteRt) and runner.throughout:
        marks = (node.name for node in read_proto(runner.program).graph.node)
        found = {name: ("int8", True) for name in marks if name.startswith(MARK)}
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
        while node is not None and node.op_type in ("DequantizeLinear", "Transpose", "Cast"):
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
