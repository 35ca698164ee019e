# SPDX-License-Identifier: Apache-2.0
"""A ``.tflite`` file that LiteRT computes in int8 throughout, made of a QDQ file placed for it.

LiteRT's 8-bit specification (ai.google.dev/edge/litert/models/quantization_spec): activations int8 with one
scale and zero point, weights symmetric without -128 and one scale for each output channel, biases int32 in
steps of input scale times weight scale. Between the first and the last quantiser every operator is an int8
operator. Images lie as (batch, height, width, channels) in the file, so its inputs do too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.errors import ModelError
from rarefy.export.integer_steps import in_floats, settings
from rarefy.export.litert_file import LiteRtFile, Scaled, Weight
from rarefy.export.litert_moves import Unwritable, stored
from rarefy.export.litert_operators import FUSING, MOVING, WRITERS, clip_ends
from rarefy.export.onnx import into_file
from rarefy.export.session import Program, read_proto

if TYPE_CHECKING:
    from onnx import ModelProto

CLIPS = ("Relu", "Clip")
# (lowest, highest) that an operator's own clip knows, and what the schema calls it
FUSED = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def save_litert(program: Program, path: Path) -> int:
    """Writes a QDQ file for LiteRT and returns the new file's size in bytes.

    Args:
        program: a model, its bytes, or the path of a file; of a network that `StaticInt8` has quantised with
            ``runtime="litert"``.
        path: of the ``.tflite`` file.

    Raises:
        ModelError: lists the operators that can't be written.
        FileError: a file can't be read or written.
    """
    content = litert_content(program)
    return into_file(path, lambda file: file.write(content))


def litert_content(program: Program) -> bytes:
    """The bytes that `save_litert` writes."""
    return Conversion(read_proto(program)).run()


class Conversion:
    """One file on its way: which tensor of the new file holds which value of the old one.

    Args:
        proto: a QDQ model; changed.
    """

    def __init__(self, proto: "ModelProto") -> None:
        from onnx import numpy_helper, shape_inference

        graph = proto.graph
        held = {tensor.name for tensor in graph.initializer}
        self.inputs = [value for value in graph.input if value.name not in held]
        self.open = any(v.type.tensor_type.shape.dim[0].dim_param for v in self.inputs)
        for value in (*self.inputs, *graph.output):
            for dim in value.type.tensor_type.shape.dim[:1]:
                dim.dim_value = dim.dim_value or 1
        known = shape_inference.infer_shapes(proto, data_prop=True).graph
        self.proto, self.file = proto, LiteRtFile()
        self.known = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*known.value_info, *known.input, *known.output)
        }
        self.constants = {t.name: np.array(numpy_helper.to_array(t)) for t in graph.initializer}
        self.weights: dict[str, Weight] = {}
        self.tensors: dict[str, int] = {}  # codes by the names of their values
        self.rounded: set[str] = set()  # names that are codes in the old file, too
        self.floats: dict[str, int] = {}
        self.pending: dict[str, tuple[Any, float, float]] = {}  # operators without a grid, clipped

    def run(self) -> bytes:
        """The new file's content."""
        for value in self.inputs:
            self.floats[value.name] = self.file.tensor(
                value.name, stored(self.sizes(value.name)), "FLOAT32", open_batch=self.open
            )
        faults: list[str] = []
        lost: set[str] = set()
        for node in self.proto.graph.node:
            try:
                self.take(node)
            except Unwritable as fault:
                culprit = self.pending.get(node.input[0], (node,))[0]
                if lost.isdisjoint(node.input):  # else it is told already
                    faults.append(f"{culprit.op_type} '{culprit.output[0]}': {fault}")
                lost.update(node.output)
        outputs = [value.name for value in self.proto.graph.output]
        for name in outputs:
            if not faults and name not in self.tensors:
                faults.append(f"'{name}': it leaves the network in floats")
        if faults:
            raise ModelError(
                f"the network can't be written for LiteRT in int8 throughout: {'; '.join(faults)}; quantise "
                "it with static-int8 and runtime litert, or exclude nothing"
            )
        ends = [self.leaving(name) for name in outputs]
        return self.file.content([self.floats[value.name] for value in self.inputs], ends)

    def take(self, node: Any) -> None:
        """Goes past one operator of the old file.

        Raises:
            Unwritable: says why it can't be written.
        """
        kind, name = node.op_type, node.output[0]
        if kind == "DequantizeLinear":
            self.dequantize(node)
        elif kind == "QuantizeLinear":
            self.tensors[name] = self.quantize(node)
            self.rounded.add(name)
        elif all(not i or i in self.constants for i in node.input):
            given = [torch.from_numpy(self.constants[i]) if i else None for i in node.input]
            self.constants[name] = in_floats(self.proto, node, given)[0].numpy()
        elif kind in CLIPS and node.input[0] in self.pending:
            maker, low, high = self.pending[node.input[0]]
            ends = clip_ends(node, self.constants)
            self.pending[name] = maker, max(low, ends[0]), min(high, ends[1])
        elif kind not in WRITERS:
            raise Unwritable("LiteRT's int8 operators that are written here have none for it")
        else:
            clips = kind in CLIPS
            low, high = clip_ends(node, self.constants) if clips else (-np.inf, np.inf)
            self.pending[name] = node, low, high

    def dequantize(self, node: Any) -> None:
        """A weight, or codes now read as values."""
        name = node.output[0]
        if node.input[0] in self.tensors:
            self.tensors[name] = self.tensors[node.input[0]]
            return
        if node.input[0] not in self.constants:
            raise Unwritable("what it reads is not there")
        codes, scale = (self.constants[i] for i in node.input[:2])
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(())
        if zero.any() or codes.dtype not in (np.int8, np.int32):
            raise Unwritable("weights are symmetric int8 there")
        channels = codes.shape[settings(node).get("axis", 1) % codes.ndim] if codes.ndim else 1
        self.weights[name] = Weight(codes, np.broadcast_to(scale.astype(np.float32), channels))

    def quantize(self, node: Any) -> int:
        """Codes of a value: of an input, of other codes, or what an operator gives."""
        source, scaled = node.input[0], self.grid(node)
        if source in self.floats:
            made = self.result(node.output[0], stored(self.sizes(source)), scaled)
            return self.file.operator("QUANTIZE", [self.floats[source]], made)
        if source in self.tensors:
            return self.rescaled(self.tensors[source], scaled)
        if source not in self.pending:
            raise Unwritable("what it reads is not there")
        maker, low, high = self.pending[source]
        return WRITERS[maker.op_type](
            self, maker, scaled, self.activation(maker, low, high, scaled)
        )

    def grid(self, node: Any) -> Scaled:
        """Scale and zero point of a quantiser of activations."""
        scale, zero = (self.constants[i] for i in node.input[1:3])
        if scale.size != 1 or zero.dtype != np.int8:
            raise Unwritable("activations are int8 with one scale there")
        return Scaled(scale.astype(np.float32).reshape(()), int(zero.reshape(())))

    def activation(self, maker: Any, low: float, high: float, scaled: Scaled) -> int:
        """The schema's number of a clip; none where the ends of the codes cut there anyway."""
        kinds, (least, most) = self.file.schema.ActivationFunctionType, scaled.ends()
        half = float(scaled.scale) / 2
        if low <= least + half and high >= most - half:
            return int(kinds.NONE)
        if (low, high) not in FUSED or maker.op_type not in FUSING:
            raise Unwritable(f"a clip to {low:g} … {high:g} is none of its own")
        return int(getattr(kinds, FUSED[low, high]))

    def codes(self, node: Any, place: int) -> int:
        """The tensor of codes that a node reads."""
        name = node.input[place]
        if name not in self.tensors and name in self.pending:
            maker, low, high = self.pending[name]
            if maker.op_type in MOVING and (low, high) == (-np.inf, np.inf):  # its scale is known
                scaled = self.scaled(self.codes(maker, 0))
                self.tensors[name] = WRITERS[maker.op_type](self, maker, scaled, 0)
        if name not in self.tensors:
            raise Unwritable(f"input {place} is not quantised")
        return self.tensors[name]

    def weight(self, node: Any, place: int) -> Weight:
        """The weight that a node reads."""
        if node.input[place] not in self.weights:
            raise Unwritable("its weight is not quantised")
        return self.weights[node.input[place]]

    def bias(self, node: Any, place: int, x: int, scale: NDArray[np.float32], count: int) -> int:
        """A bias in 32-bit steps of the input's scale times the weight's; zeros where there is none."""
        steps, codes = self.scaled(x).scale * scale, np.zeros(count, np.int32)
        name = node.input[place] if len(node.input) > place else ""
        if name in self.weights:
            own = self.weights[name]
            codes = np.round(own.codes * (own.scale.astype(np.float64) / steps)).astype(np.int32)
        elif name:
            codes = np.round(self.constants[name].astype(np.float64) / steps).astype(np.int32)
        return self.file.tensor("bias", [count], "INT32", data=codes, scaled=Scaled(steps))

    def rescaled(self, x: int, scaled: Scaled) -> int:
        """The same values on another grid."""
        if self.scaled(x).same(scaled):
            return x
        return self.file.operator("QUANTIZE", [x], self.result("rescaled", self.shape(x), scaled))

    def leaving(self, name: str) -> int:
        """An output: codes as they are if they are asked for, else floats."""
        x = self.tensors[name]
        if name in self.rounded:
            return x
        made = self.file.tensor(name, self.shape(x), "FLOAT32", open_batch=self.open)
        return self.file.operator("DEQUANTIZE", [x], made)

    def output(self, node: Any, scaled: Scaled) -> int:
        """A tensor for what a node gives."""
        return self.result(node.output[0], stored(self.sizes(node.output[0])), scaled)

    def result(self, name: str, shape: Sequence[int], scaled: Scaled) -> int:
        """A tensor of codes, its shape as stored."""
        return self.file.tensor(name, shape, "INT8", scaled=scaled, open_batch=self.open)

    def sizes(self, name: str) -> list[int]:
        """The shape of a value of the old file."""
        if name not in self.known or not all(self.known[name]):
            raise Unwritable("the shape of its result is not known")
        return self.known[name]

    def shape(self, x: int) -> list[int]:
        """The shape of a tensor of the new file."""
        return list(self.file.tensors[x].shape)

    def scaled(self, x: int) -> Scaled:
        """What the codes of a tensor mean."""
        found = self.file.tensors[x].quantization
        return Scaled(np.asarray(found.scale[0], np.float32), int(found.zeroPoint[0]))
