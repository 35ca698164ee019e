# SPDX-License-Identifier: Apache-2.0
"""What all runtimes have in common: an ONNX file as a callable on the same inputs as the network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rarefy.errors import ModelError
from rarefy.export.session import Program
from rarefy.task import Inputs

TYPES = {
    "float": torch.float32,
    "float16": torch.float16,
    "double": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Slot:
    """An input that a program declares.

    Attributes:
        name: of the input.
        type: in ONNX's words, a key of `TYPES` or one that torch does not have.
        shape: sizes; None or a word where any will do.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Runner(ABC):
    """A program that answers like the network: tensors in, tensors out.

    It is called with a tensor, with several, with a tuple or a mapping of them; one output comes back as a
    tensor, several as a tuple. Inputs are cast to the declared types (an integer where a float is wanted, a
    double where a single one is). A file with a fixed batch size takes any batch: it is cut into pieces, the
    last one padded.

    Attributes:
        name: of the runtime.
        program: what it runs.
        threads: with which it runs.
        inputs: declared, by name, in order.
        output_names: in order.
        batch: the size that the file insists on, or None.
    """

    name: ClassVar[str]
    program: Program
    threads: int
    inputs: dict[str, Slot]
    output_names: list[str]
    batch: int | None

    @property
    def input_names(self) -> list[str]:
        """In order."""
        return list(self.inputs)

    @property
    @abstractmethod
    def precision(self) -> str:
        """The arithmetic: ``"int8"`` if integer kernels multiply, else ``"float32"``."""

    @abstractmethod
    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs for inputs of the declared types."""

    @abstractmethod
    def probe(self, outputs: Sequence[str]) -> Self:
        """The same program in the same runtime, intermediate values returned after its own outputs."""

    def fixed(self, inputs: Inputs) -> "Runner":
        """The same program for batches of the sizes of this one alone, where a runtime is faster so.

        By default the program itself. A runtime that plans for sizes gives one with the batch of `inputs`.
        """
        return self

    def node_times(self, inputs: Inputs, rounds: int = 10) -> dict[str, float]:
        """Microseconds of every node that the runtime runs, by its own names; empty if it does not tell.

        Args:
            inputs: a batch as the file takes it.
            rounds: calls over which medians are taken.
        """
        return {}

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

    def in_pieces(self, feed: Mapping[str, Tensor], size: int, batch: int) -> list[Tensor]:
        """Runs `size` examples through a program that takes exactly `batch` at a time."""
        pieces = []
        for start in range(0, size, batch):
            rows = torch.arange(start, start + batch).clamp(max=size - 1)
            pieces.append(self.run({name: value[rows] for name, value in feed.items()}))
        return [torch.cat(parts)[:size] for parts in zip(*pieces, strict=True)]


def fixed_batch(inputs: Sequence[Slot]) -> int | None:
    """The batch size that a file insists on, or None."""
    sizes = {i.shape[0] for i in inputs if i.shape}
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) and only > 0 else None


def cast(value: Tensor, declared: Slot) -> Tensor:
    """`value` on the CPU in the declared type.

    Raises:
        ModelError: a float where an integer is declared, or a type that torch does not have.
    """
    wanted = TYPES.get(declared.type)
    if wanted is None or (value.is_floating_point() and not wanted.is_floating_point):
        raise ModelError(
            f"input '{declared.name}' is {str(value.dtype).removeprefix('torch.')}, but the program "
            f"takes {declared.type}; convert it"
        )
    return value.detach().to("cpu", wanted).contiguous()
