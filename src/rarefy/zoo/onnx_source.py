# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file says, read and checked: nodes, constants, names, and how many axes values have."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rarefy.errors import FileError, ModelError, described

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OLDEST = 13  # the version of the standard from which operators mean what they mean here
DOMAINS = ("", "ai.onnx")
INTEGER_OPERATORS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
)


@dataclass(frozen=True)
class Work:
    """A node.

    Attributes:
        operator: of the standard.
        name: of the node.
        how: attributes; tensors as tensors, types as torch's.
        inputs, outputs: names; empty where an optional one is missing.
    """

    operator: str
    name: str
    how: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def reading(self, inputs: tuple[str, ...]) -> "Work":
        """The same node with other inputs."""
        return dataclasses.replace(self, inputs=inputs)


@dataclass(frozen=True)
class Source:
    """A file.

    Attributes:
        path: for messages.
        works: nodes in order.
        constants: tensors by name.
        origins: by value, the stored tensor from which it was moved or turned; itself for stored ones.
        ranks: how many axes values have, where that is known.
        inputs, outputs: names.
        digest: a hash of the graph without its constants.
    """

    path: str
    works: tuple[Work, ...]
    constants: dict[str, Tensor]
    origins: dict[str, str]
    ranks: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    digest: str

    def refusal(self, work: Work) -> ModelError:
        """Why the file can't become a network."""
        number = Counter(w.operator for w in self.works)[work.operator]
        if work.operator in INTEGER_OPERATORS:
            return ModelError(
                f"'{self.path}' is quantised already (it has {number} nodes {work.operator}); give the "
                "float file that it was made from"
            )
        return ModelError(
            f"'{self.path}' uses the operator {work.operator} ({number} times, first in node "
            f"'{work.name}'), which can't be turned into a PyTorch layer as it is used there; "
            "give the PyTorch network that it was exported from"
        )


def read_source(path: Path) -> Source:
    """Reads an ONNX file, weights in other files included.

    Raises:
        FileError: missing, damaged, or a file of weights is missing.
        ModelError: an operator outside the standard.
    """
    from onnx import shape_inference

    proto = modern(loaded(path))
    nodes = proto.graph.node
    foreign = next((n for n in nodes if n.domain not in DOMAINS), None)
    if foreign is not None:
        raise ModelError(
            f"'{path}' uses the operator {foreign.domain}::{foreign.op_type}, which is not of the ONNX "
            "standard; give a file as it was before a runtime optimised or quantised it"
        )
    constants = {t.name: tensor_from(t) for t in proto.graph.initializer}
    works = []
    for number, node in enumerate(nodes):
        work = read_node(node, number)
        if work.operator == "Constant":
            constants[work.outputs[0]] = constant_of(work.how)
        else:
            works.append(work)
    inferred = shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.input)
    types = {v.name: v.type.tensor_type for v in values}
    ranks = {name: len(t.shape.dim) for name, t in types.items() if t.HasField("shape")}
    inputs = tuple(v.name for v in proto.graph.input if v.name not in constants)
    outputs = tuple(v.name for v in proto.graph.output)
    joined = fuse_biases(works, constants, set(outputs))
    text = b"".join(node.SerializeToString(deterministic=True) for node in nodes)
    return Source(
        str(path), joined, constants, origins_of(joined, constants), ranks, inputs, outputs,
        hashlib.sha256(text).hexdigest(),
    )  # fmt: skip


def loaded(path: Path) -> "ModelProto":
    """The whole model.

    Raises:
        FileError: it can't be read.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if path.suffix == ".rfy":
        from rarefy.store.pack import load_onnx

        return load_onnx(path)
    try:
        proto = onnx.load(str(path))
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise FileError(f"'{path}' is no readable ONNX file: {described(error)}") from None
    if not proto.graph.output:
        raise FileError(f"'{path}' is no readable ONNX file: it has no outputs; is it cut short?")
    return proto


def modern(proto: "ModelProto") -> "ModelProto":
    """The model in a version of the standard that is read here."""
    from onnx import version_converter

    version = next((o.version for o in proto.opset_import if o.domain in DOMAINS), OLDEST)
    if version >= OLDEST:
        return proto
    try:
        return version_converter.convert_version(proto, OLDEST)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the file is of version {version} of the standard and can't be brought to {OLDEST}: "
            f"{described(error)}; export it anew"
        ) from None


def tensor_from(proto: "TensorProto") -> Tensor:
    """A stored tensor; floats of other widths become float32."""
    import numpy as np
    from onnx import numpy_helper

    array = np.array(numpy_helper.to_array(proto))
    if array.dtype.kind == "f" or "float" in array.dtype.name:
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def read_node(node: "NodeProto", number: int) -> Work:
    """A node with its attributes in Python's words."""
    from onnx import AttributeProto, TensorProto, helper

    how: dict[str, Any] = {"results": len(node.output)}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            value = tensor_from(value)
        elif isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list):
            value = tuple(v.decode() if isinstance(v, bytes) else v for v in value)
        how[attribute.name] = value
    if "to" in how:
        name = TensorProto.DataType.Name(how["to"]).lower()
        floats = ("float", "float16", "bfloat16", "double")
        how["to"] = torch.float32 if name in floats else getattr(torch, name)
    name = node.name or f"{node.op_type.lower()}_{number}"
    return Work(node.op_type, name, how, tuple(node.input), tuple(node.output))


def constant_of(how: Mapping[str, Any]) -> Tensor:
    """The value of a Constant node."""
    for name, value in how.items():
        if name == "value":
            return value
        if name.startswith("value_"):
            return torch.tensor(value)
    raise ModelError("the file has a Constant without a value that is a number")


def fuse_biases(
    works: list[Work], constants: Mapping[str, Tensor], ends: set[str]
) -> tuple[Work, ...]:
    """Joins MatMul by a stored matrix and the Add of a stored vector behind it, as Gemm is one node."""
    readers = Counter(name for work in works for name in work.inputs)
    made = {work.outputs[0]: i for i, work in enumerate(works) if work.operator == "MatMul"}
    found: list[Work | None] = list(works)
    known = set(constants) | {""}
    for work in works:
        known |= set(work.outputs) if known.issuperset(work.inputs) else set()
    for place, work in enumerate(works):
        if work.operator != "Add":
            continue
        for x, bias in (work.inputs, work.inputs[::-1]):
            product = found[made[x]] if x in made else None
            vector = constants.get(bias)
            if (
                product is None
                or vector is None
                or vector.dim() != 1
                or readers[x] > 1
                or x in ends
            ):
                continue
            inputs = (*product.inputs[:2], bias)
            found[made[x]] = None
            found[place] = dataclasses.replace(product, inputs=inputs, outputs=work.outputs)
            break
    return tuple(work for work in found if work is not None)


def origins_of(works: tuple[Work, ...], constants: Mapping[str, Tensor]) -> dict[str, str]:
    """From which stored tensor a value that is only moved about comes."""
    origins = {name: name for name in constants}
    for work in works:
        moved = work.operator in ("Transpose", "Reshape", "Cast", "Identity", "Unsqueeze")
        if moved and work.inputs[0] in origins:
            origins[work.outputs[0]] = origins[work.inputs[0]]
    return origins
