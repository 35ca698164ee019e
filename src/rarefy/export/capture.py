# SPDX-License-Identifier: Apache-2.0
"""From a finished network and an example to an ONNX graph, every node knowing which module it came from."""

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.batches import mapped
from rarefy.errors import ModelError
from rarefy.export.translate import OPSET, opset_for, translation_table
from rarefy.task import Inputs, move

LIBRARIES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "graph"),
)


def capture(model: nn.Module, example: Inputs) -> Any:
    """Traces `model` (non-strict `torch.export`) and translates it to ONNX without optimising it.

    The first axis of every input is left open where the network allows it; a network that works with one
    batch size only is captured with the example's.

    Args:
        model: in eval mode on the CPU, such as `rarefy.export.finished.finished` returns.
        example: batch first.

    Returns:
        An ``onnx_ir.Model`` whose nodes carry their origin as metadata.

    Raises:
        ModelError: the network can't be traced or has an operator that ONNX lacks; names line or operator.
    """
    example = move(example, torch.device("cpu"))
    wide = widened(example)
    with quiet(), torch.no_grad():
        try:
            program = trace(model, wide, dynamic=True)
        except Exception as first:
            # a network may insist on the example's own batch size
            try:
                program = trace(model, example, dynamic=False)
            except Exception:
                raise ModelError(untraceable(model, first)) from first
        try:
            result = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset_for(model),
                custom_translation_table=translation_table(),
            )
        except Exception as error:
            raise ModelError(untranslatable(model, error)) from error
    return result.model  # type: ignore[union-attr]


def trace(model: nn.Module, example: Inputs, dynamic: bool) -> torch.export.ExportedProgram:
    """`torch.export` with the first axis open, or with all sizes as they are."""
    named = isinstance(example, Mapping)
    args = () if named else example if isinstance(example, tuple) else (example,)
    return torch.export.export(
        model,
        args,
        dict(example) if isinstance(example, Mapping) else None,
        dynamic_shapes=open_axes(example) if dynamic else None,
        strict=False,
    )


def open_axes(example: Inputs) -> Any:
    """For every input tensor that its first axis may vary."""

    def axes(tensor: Tensor) -> dict[int, Any] | None:
        return {0: torch.export.Dim.AUTO} if tensor.dim() else None

    if isinstance(example, Mapping):
        return {name: axes(value) for name, value in example.items()}
    return tuple(axes(value) for value in (example if isinstance(example, tuple) else (example,)))


def widened(example: Inputs) -> Inputs:
    """The example with a batch of at least two: tracing takes a size of one for a constant."""

    def two(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor

    return mapped(example, two)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the tracer's prints, warnings and log lines away from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def untraceable(model: nn.Module, error: Exception) -> str:
    """Why a network could not be traced, with the line of the user's code."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*LIBRARIES, "<"))
    ]
    place = f" at {frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else ""
    text = str(error).strip() or type(error).__name__
    remedy = ""
    if "data-dependent" in text:
        text = "the values of a tensor decide which way it goes"
        remedy = "; compute both ways and choose with torch.where"
    return f"the {type(model).__name__} can't be traced for export{place}: {text.splitlines()[0]}{remedy}"


def untranslatable(model: nn.Module, error: Exception) -> str:
    """Why a traced network could not be written as ONNX, with the operator."""
    texts = [str(cause) for cause in causes(error)]
    for text in texts:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
        if found:
            return (
                f"the {type(model).__name__} uses the operator '{found[1]}', which standard ONNX "
                f"(opset {OPSET}) can't express; replace it before export"
            )
    last = next(line for line in reversed(texts) if line.strip()).strip().splitlines()[0]
    return f"the {type(model).__name__} can't be written as ONNX: {last}"
