# SPDX-License-Identifier: Apache-2.0
"""The content of a ``.tflite`` file: tensors, operators and buffers, packed as LiteRT's schema says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTIFIER = b"TFL3"
VERSION = 3  # of the schema
# versions of operators from which on they take int8
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "CONCATENATION": 2,
    "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "MEAN": 2, "TRANSPOSE": 2, "PAD": 2, "PADV2": 2,
    "DEQUANTIZE": 2, "LEAKY_RELU": 2, "QUANTIZE": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """Values as scale * (codes - zero).

    Attributes:
        scale: () or (channels,) float32.
        zero: code of 0.
        axis: of the channels.
    """

    scale: NDArray[np.float32]
    zero: int = 0
    axis: int = 0

    def same(self, other: "Scaled") -> bool:
        """Whether codes mean the same values."""
        return self.zero == other.zero and np.array_equal(self.scale, other.scale)

    def ends(self) -> tuple[float, float]:
        """The values of the lowest and the highest code of int8, for one scale."""
        return tuple(float(self.scale) * (code - self.zero) for code in (-128, 127))  # type: ignore[return-value]


@dataclass(frozen=True)
class Weight:
    """A weight or a bias.

    Attributes:
        codes: of any shape.
        scale: (channels,) float32, one for each output channel.
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]


class LiteRtFile:
    """One graph, put together tensor by tensor and operator by operator.

    Attributes:
        tensors: of the graph, in the schema's own objects.
        operators: in the order in which they run.
    """

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # the first one means: no data
        self.codes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str,
        *,
        data: NDArray[Any] | None = None,
        scaled: Scaled | None = None,
        open_batch: bool = False,
    ) -> int:
        """Adds a tensor and returns its number.

        Args:
            name: of the tensor.
            shape: its sizes.
            kind: ``"INT8"``, ``"INT32"`` or ``"FLOAT32"``.
            data: values of a constant.
            scaled: what codes mean.
            open_batch: whether the first axis takes any size.
        """
        s = self.schema
        made = s.TensorT(list(shape), getattr(s.TensorType, kind), 0, name.encode(), hasRank=True)
        if open_batch and shape:
            made.shapeSignature = [-1, *shape[1:]]
        if data is not None:
            made.buffer = len(self.buffers)
            raw = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(s.BufferT(raw))
        if scaled is not None:
            scales = np.atleast_1d(scaled.scale).astype(np.float32)
            made.quantization = s.QuantizationParametersT(
                scale=scales,
                zeroPoint=np.full(scales.size, scaled.zero, np.int64),
                quantizedDimension=scaled.axis,
            )
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, values: Any) -> int:
        """Adds a tensor of 32-bit integers."""
        data = np.array(values, np.int32)
        return self.tensor("constant", data.shape, "INT32", data=data)

    def operator(
        self, code: str, inputs: Sequence[int], output: int, options: str = "", **fields: Any
    ) -> int:
        """Adds an operator with one result and returns the number of that.

        Args:
            code: of the schema's built-in operators.
            inputs: numbers of tensors.
            output: number of the result.
            options: the schema's name of the operator's options, if it has some.
            fields: of the options.
        """
        s = self.schema
        number = self.codes.setdefault(code, len(self.codes))
        made = s.OperatorT(number, list(inputs), [output])
        if options:
            made.builtinOptionsType = getattr(s.BuiltinOptions, options)
            made.builtinOptions = getattr(s, f"{options}T")(**fields)
        self.operators.append(made)
        return output

    def content(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file's bytes.

        Args:
            inputs, outputs: numbers of the graph's ends.
        """
        import flatbuffers

        s = self.schema
        codes = []
        for name in self.codes:
            code = getattr(s.BuiltinOperator, name)
            codes.append(s.OperatorCodeT(min(code, 127), None, VERSIONS.get(name, 1), code))
        graph = s.SubGraphT(self.tensors, list(inputs), list(outputs), self.operators, b"main")
        model = s.ModelT(VERSION, codes, [graph], b"rarefy", self.buffers)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())
