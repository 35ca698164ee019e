# SPDX-License-Identifier: Apache-2.0
"""Weights stored as 16-bit floats, computed with in 32 bits, after a check that nothing overflows.

Every parameter and running statistic is stored in half; a cast widens it where it is used, so sums, norms
and softmax keep their 32 bits and the exported file gives what the network gives. A runtime that computes in
fp16 throughout must also hold the activations, so these are watched on calibration data.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.forms.shadow import Form, bake, dress
from rarefy.graph.calls import CallWatcher
from rarefy.measure.quality import batches_of
from rarefy.step import Context, Count, Step
from rarefy.task import Task, call, move, tensors_of

MASK = -1e37
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Half(Form):
    """Widens a tensor that is stored in half to float32; exported as a Cast."""

    kind: ClassVar[str] = "half"

    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()

    def right_inverse(self, w: Tensor) -> Tensor:
        return w

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stays as it is: the half is what is stored."""


class LargestWatcher(CallWatcher):
    """Remembers for every call site the largest absolute value that it gave; NaN counts as infinite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.largest: dict[str, Tensor] = {}

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for tensor in tensors_of(result):
            if tensor.is_floating_point() and tensor.numel():
                reached = reach_of(tensor.detach())
                self.largest[site] = torch.maximum(self.largest.get(site, reached), reached)
        return result


def reach_of(x: Tensor) -> Tensor:
    """The largest absolute value, (); below -1e37 are masks of attention, which may become infinite."""
    return torch.where(x < MASK, 0.0, x.float()).abs().nan_to_num(nan=torch.inf).amax()


@torch.no_grad()
def largest_activations(
    model: nn.Module, task: Task, examples: int, device: torch.device
) -> dict[str, float]:
    """The largest absolute value at every call site of a network over calibration batches.

    Raises:
        TaskError: there is no calibration batch.
    """
    watcher = LargestWatcher(model.eval())
    batch = None
    for batch in batches_of(task, "calibration", examples):
        with watcher.watching():
            call(model, move(batch, device))
    if batch is None:
        raise TaskError(f"task '{task.name}' yields no calibration batch: its loader is empty")
    return {site: float(value) for site, value in watcher.largest.items()}


def float_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every float32 or float64 tensor that is saved and bare: (its path, module, name, tensor).

    Tensors that forms are made of are left out, as are recurrent layers, which keep lists of their own
    parameters that a form can't reach.
    """
    for path, module in model.named_modules():
        if "parametrizations" in path.split(".") or isinstance(module, nn.RNNBase):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            saved = name not in module._non_persistent_buffers_set
            if tensor is not None and saved and tensor.dtype in (torch.float32, torch.float64):
                yield f"{path}.{name}".lstrip("."), module, name, tensor


@torch.no_grad()
def halve(model: nn.Module, precision: str) -> int:
    """Stores the float tensors of a network in 16 bits; shared ones stay shared. Returns their number.

    Raises:
        ModelError: a value beyond the range, with the name of the tensor.
    """
    made: dict[int, Tensor] = {}
    for path, module, name, tensor in list(float_tensors(model)):
        reach = float(tensor.abs().amax()) if tensor.numel() else 0.0
        if not reach <= torch.finfo(TYPES[precision]).max:
            raise overflow(f"'{path}' holds", reach, precision)
        trained = isinstance(tensor, nn.Parameter)
        if id(tensor) not in made:
            half = tensor.detach().to(TYPES[precision])
            made[id(tensor)] = nn.Parameter(half, requires_grad=False) if trained else half
        held: dict[str, Any] = module._parameters if trained else module._buffers
        held[name] = made[id(tensor)]
        dress(module, name, Half())
    return len(made)


def overflow(where: str, reach: float, precision: str) -> ModelError:
    """The sentence about a value that does not fit."""
    limit = torch.finfo(TYPES[precision]).max
    remedy = "; use precision='bf16', or scale the layer" if precision == "fp16" else ""
    return ModelError(
        f"{where} {reach:.4g}, beyond {limit:.6g}, the largest {precision} number{remedy}"
    )


@dataclass(frozen=True)
class HalfPrecision(Step):
    """Stores weights and statistics in 16 bits: half the bytes, no training.

    Attributes:
        precision: ``"fp16"`` (11 significant bits, up to 65,504) or ``"bf16"`` (8 bits, float32's range).
        examples: at most so many calibration examples on which activations are watched for overflow.
    """

    precision: Literal["fp16", "bf16"] = "fp16"
    examples: Count = 512

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})
    writes: ClassVar[str | None] = "half"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Checks the range of weights and activations and stores the former in half."""
        largest = largest_activations(model, context.task, self.examples, context.device)
        site, reach = max(largest.items(), key=lambda item: item[1], default=("", 0.0))
        if not reach <= torch.finfo(TYPES[self.precision]).max:
            module, _, function = site.partition(":")
            place = f"layer '{module}'" if module else "the network's own forward"
            function = function.partition("#")[0]
            raise overflow(
                f"on calibration data {function} in {place} gives", reach, self.precision
            )
        bake(model)
        context.record["tensors"] = halve(model, self.precision)
        context.record["largest_activation"] = {"site": site, "value": reach}
        return model
