# SPDX-License-Identifier: Apache-2.0
"""A quantised ONNX file computed in integers, step by step: what every runtime is judged against.

Convolutions, matrix products and sums between quantisers are computed as `rarefy.forms.integer` says; what
moves values is computed on them as they are, and what stays float by ONNX's own reference evaluator.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from rarefy.export.integer_steps import STEPS, Pending, in_floats, real
from rarefy.export.runner import TYPES, Runner, Slot, fixed_batch
from rarefy.export.session import Program, read_proto, with_outputs


class IntegerReference(Runner):
    """A program computed in integers wherever its quantisers allow; slow, on one thread.

    Args:
        program: a model, its bytes, or the path of a file.
        outputs: names of intermediate values to return after the file's own outputs.

    Attributes:
        integer: outputs of the nodes that were computed in integers in the last run.
    """

    name: ClassVar[str] = "reference"

    def __init__(self, program: Program, *, outputs: Sequence[str] = ()) -> None:
        from onnx import helper, numpy_helper

        self.threads = 1
        self.program = with_outputs(program, outputs) if outputs else program
        self.proto = read_proto(self.program, copied=False)
        graph = self.proto.graph
        self.constants: dict[str, Tensor] = {
            t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
        }
        slots = []
        for value in graph.input:
            kind = value.type.tensor_type
            name = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
            name = {"float32": "float", "float64": "double"}.get(name, name)
            shape = tuple(d.dim_value or None for d in kind.shape.dim)
            slots.append(Slot(value.name, name if name in TYPES else "unknown", shape))
        self.inputs = {slot.name: slot for slot in slots if slot.name not in self.constants}
        self.output_names = [value.name for value in graph.output]
        self.batch = fixed_batch(list(self.inputs.values()))
        self.integer: set[str] = set()

    def probe(self, outputs: Sequence[str]) -> Self:
        """The same program, intermediate values returned too."""
        return type(self)(self.program, outputs=outputs)

    @property
    def precision(self) -> str:
        """``"int8"``: it is here for that."""
        return "int8"

    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs, node by node."""
        values: dict[str, Any] = {**self.constants, **feed}
        self.integer = set()
        for node in self.proto.graph.node:
            given = [values.get(name) for name in node.input]
            step = STEPS.get(node.op_type)
            result = step(node, given) if step is not None else None
            if result is not None:
                values[node.output[0]] = result
                if isinstance(result, Pending):
                    self.integer.add(node.output[0])
            else:
                values.update(zip(node.output, in_floats(self.proto, node, given), strict=False))
        return [real(values[name]) for name in self.output_names]
