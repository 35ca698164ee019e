# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file computes what the network computes, on real inputs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rarefy.errors import TaskError
from rarefy.export.difference import Difference
from rarefy.export.divergence import first_diverging_layer
from rarefy.export.inputs import starting_with
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.export.runner import Runner
from rarefy.forms.activations import ActivationQuantizer
from rarefy.forms.dynamic import DynamicLinear
from rarefy.forms.groups import InGroups
from rarefy.forms.recurrent import Recurrent
from rarefy.loops.modes import device_of, evaluating
from rarefy.task import Inputs, call, logits_of, move, same_answer, tensors_of

if TYPE_CHECKING:
    from onnx import ModelProto

FLOAT = 1e-3
HALF = 1e-2
# An integer kernel adds up in another order than the network's float emulation, so now and then a value that
# lies half way between two codes is rounded to the other one. That is one step of 1/255 of the range; layers
# behind it pass it on. Measured on the zoo with random inputs: at most 4 steps at the output of resnet20 and
# resnet56, 2 of lenet5, 1 of the others; sums cut off at 16 bits, a real fault, cost lenet5 38 steps.
QUANTISED = 8 / 255
AGREEMENT = 0.95


@dataclass(frozen=True)
class Parity:
    """How far a program's answers are from the network's.

    Attributes:
        runtime: that ran the program.
        passed: whether the differences are within the tolerance (and, for quantised activations, 95% of
            the answers the same).
        max_absolute: largest difference of an output value.
        max_relative: the same as a fraction of that output's range over all samples.
        agreement: fraction of examples with the same answer (largest output), or mean cosine similarity.
        samples: examples compared.
        tolerance: of `max_relative`.
        first_diverging_layer: path of the module where the two begin to differ, if they do and it is known.
    """

    runtime: str
    passed: bool
    max_absolute: float
    max_relative: float
    agreement: float
    samples: int
    tolerance: float
    first_diverging_layer: str | None = None


@dataclass
class Comparison:
    """What is known after some batches.

    Attributes:
        outputs: one for each output of the network.
        agreeing, samples: examples with the same answer, and all.
        worst: the inputs of the batch with the largest difference, that example first.
    """

    outputs: list[Difference] = field(default_factory=list)
    agreeing: float = 0.0
    samples: int = 0
    worst: Inputs | None = None

    def add(self, inputs: Inputs, reference: Any, answer: Any) -> None:
        """Compares the outputs for one batch."""
        ours, theirs = tensors_of(reference), tensors_of(answer)
        if not self.outputs:
            self.outputs = [Difference() for _ in ours]
        for i, difference in enumerate(self.outputs):
            before = difference.largest
            pair = theirs[i].to(ours[i].device) if i < len(theirs) else ours[i].new_empty(0)
            example = difference.add(ours[i], pair)
            if self.worst is None or difference.largest > before:
                self.worst = starting_with(inputs, example)
        self.samples += len(tensors_of(inputs)[0])
        first = logits_of(reference)
        if theirs and theirs[0].shape == first.shape and first.dim() > 1:
            scores = same_answer(first.float(), theirs[0].to(first.device).float())
            self.agreeing += float(scores.sum())


def check_parity(
    model: nn.Module,
    program: "Runner | ModelProto | bytes | str | Path",
    batches: Iterable[Inputs],
    *,
    tolerance: float | None = None,
) -> Parity:
    """Runs the network and the program on the same inputs and compares their outputs.

    Args:
        model: in any state and on any device; compared in eval mode, left as it was.
        program: exported from it, opened in the runtime to judge; else ONNX Runtime opens it.
        batches: of inputs, without targets; at least one.
        tolerance: largest difference as a fraction of the output's range. Default: 1e-3; 1e-2 for float16
            weights; 8/255 and 95% equal answers if the network quantises activations.

    Raises:
        TaskError: there are no batches.
    """
    runtime = program if isinstance(program, Runner) else OnnxRuntime(program)
    device, found = device_of(model), Comparison()
    allowed = tolerance if tolerance is not None else default_tolerance(model)
    with evaluating(model), torch.no_grad():
        for inputs in batches:
            found.add(inputs, call(model, move(inputs, device)), call(runtime, inputs))
        if found.worst is None:
            raise TaskError("parity needs at least one batch of inputs; there was none")
        relative = max(d.relative for d in found.outputs)
        agreement = found.agreeing / found.samples
        strict = tolerance is None and is_quantised(model)
        passed = relative <= allowed and (not strict or agreement >= AGREEMENT)
        layer = None
        if not passed:
            noise = allowed / 8 if is_quantised(model) else allowed / 100
            layer = first_diverging_layer(
                model, runtime, found.worst, tolerance=allowed, noise=noise
            )
    largest = max(d.largest for d in found.outputs)
    return Parity(runtime.name, passed, largest, relative, agreement, found.samples, allowed, layer)


def is_quantised(model: nn.Module) -> bool:
    """Whether the network rounds activations, so that a runtime may compute in integers.

    ONNX Runtime multiplies weights in groups (MatMulNBits) with activations that it rounds to 8 bits itself.
    """
    return any(
        isinstance(m, (ActivationQuantizer, DynamicLinear, InGroups))
        or (isinstance(m, Recurrent) and m.dynamic)
        for m in model.modules()
    )


def default_tolerance(model: nn.Module) -> float:
    """What rounding alone explains, as a fraction of the output's range."""
    if is_quantised(model):
        return QUANTISED
    small = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return HALF if small else FLOAT
