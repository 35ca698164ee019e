# SPDX-License-Identifier: Apache-2.0
"""A ``.tflite`` file as a callable on the same inputs as the network, computed by LiteRT on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from rarefy.errors import FileError, ModelError
from rarefy.export.litert import litert_content
from rarefy.export.runner import Runner, Slot
from rarefy.export.session import Program, with_outputs
from rarefy.export.threads import default_threads

KINDS = {"float32": "float", "float64": "double"}


class LiteRt(Runner):
    """A program in LiteRT; how it is called is said in `rarefy.export.runner`.

    Images are given and come back as the network has them, channels first.

    Args:
        program: a QDQ model, its bytes, or the path of a file, ``.onnx`` or ``.tflite``.
        threads: of the interpreter; default: torch's number of threads, at most the cores that are there.
        outputs: of a QDQ model, names of quantised values to return after its own outputs.

    Raises:
        FileError: the file is missing or damaged.
        ModelError: it can't be written for LiteRT.
    """

    name: ClassVar[str] = "litert"

    def __init__(
        self, program: Program, *, threads: int | None = None, outputs: Sequence[str] = ()
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.threads = threads if threads is not None else default_threads()
        self.program = with_outputs(program, outputs) if outputs else program
        path = self.program if isinstance(self.program, (str, Path)) else None
        if path is not None and Path(path).suffix == ".tflite":
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise FileError(f"'{path}' can't be read: {error.strerror or error}") from error
        else:
            content = litert_content(self.program)
        try:
            self.interpreter = Interpreter(model_content=content, num_threads=self.threads)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            name = f"'{path}'" if path is not None else "the program"
            raise FileError(f"{name} is no file that LiteRT can run: {error}") from error
        details = self.interpreter.get_input_details()
        self.inputs = {}
        for given in details:
            kind = given["dtype"].__name__
            shape = tuple(int(n) for n in given["shape"])
            self.inputs[given["name"]] = Slot(given["name"], KINDS.get(kind, kind), shape)
        self.numbers = {given["name"]: given["index"] for given in details}
        ends = self.interpreter.get_output_details()
        self.ends = [end["index"] for end in ends]
        self.output_names = [end["name"] for end in ends]
        free = all(given["shape_signature"][:1].tolist() == [-1] for given in details)
        self.batch = None if free else int(details[0]["shape"][0])

    @property
    def precision(self) -> str:
        """``"int8"`` if any of its tensors is."""
        kinds = {t["dtype"].__name__ for t in self.interpreter.get_tensor_details()}
        return "int8" if "int8" in kinds else "float32"

    @property
    def throughout(self) -> bool:
        """Whether nothing is in floats but what goes in and comes out."""
        ends = {*self.numbers.values(), *self.ends}
        tensors = self.interpreter.get_tensor_details()
        return not any(t["dtype"].__name__ == "float32" for t in tensors if t["index"] not in ends)

    def probe(self, outputs: Sequence[str]) -> Self:
        """The same program, quantised values returned too."""
        return type(self)(self.program, threads=self.threads, outputs=outputs)

    def run(self, feed: Mapping[str, Tensor]) -> list[Tensor]:
        """One run of the interpreter, at the size of this batch."""
        given = {
            name: (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous().numpy()
            for name, x in feed.items()
        }
        try:
            for name, x in given.items():
                if list(x.shape) != list(self.inputs[name].shape):
                    self.interpreter.resize_tensor_input(self.numbers[name], x.shape, strict=True)
                    self.inputs[name] = Slot(name, self.inputs[name].type, x.shape)
            self.interpreter.allocate_tensors()
            for name, x in given.items():
                self.interpreter.set_tensor(self.numbers[name], x)
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"LiteRT can't run the program: {error}") from error
        found = [torch.from_numpy(self.interpreter.get_tensor(number)) for number in self.ends]
        return [x.permute(0, 3, 1, 2).contiguous() if x.dim() == 4 else x for x in found]
