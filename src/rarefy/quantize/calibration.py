# SPDX-License-Identifier: Apache-2.0
"""Watches the call sites of a network over calibration batches; of every tensor only a histogram is kept."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, TaskError
from rarefy.forms.activations import parts_of
from rarefy.graph.calls import Calls, CallWatcher, record_calls
from rarefy.loops.histogram import Histogram
from rarefy.measure.quality import batches_of
from rarefy.quantize.ranges import BINS
from rarefy.task import Inputs, Task, call, move, tensors_of

VALUES = 1 << 12  # of an example that are counted at one site


class SiteWatcher(CallWatcher):
    """Hands what leaves every site to a function.

    Args:
        model: the network.
        see: ``(site, result)``, called for every call.
    """

    def __init__(self, model: nn.Module, see: Callable[[str, Any], None]) -> None:
        super().__init__(model)
        self.see = see

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self.see(site, result)
        return result


@torch.no_grad()
def watch_sites(model: nn.Module, inputs: Inputs, see: Callable[[str, Any], None]) -> None:
    """Runs a network once and shows its inputs (``input#0`` …) and all results of its calls."""
    for i, tensor in enumerate(tensors_of(inputs)):
        see(f"input#{i}", tensor)
    with SiteWatcher(model, see).watching():
        call(model, inputs)


def look(model: nn.Module, example: Inputs) -> tuple[Calls, set[str]]:
    """The calls of one run, and the sites (inputs among them) that give floats, in one tensor or in parts.

    Raises:
        ModelError: a part of the network is compiled, so its calls can't be seen.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ModelError(
                f"'{path or type(model).__name__}' is compiled, so the calls inside can't be watched; "
                "give the network as it was before torch.jit or torch.compile"
            )
    floating: set[str] = set()

    def see(site: str, result: Any) -> None:
        parts = parts_of(result)
        if parts and all(part.is_floating_point() for part in parts):
            floating.add(site)

    calls = record_calls(model, example)
    watch_sites(model, example, see)
    return calls, floating


def calibrate(
    model: nn.Module,
    task: Task,
    groups: Collection[tuple[str, ...]],
    examples: int,
    device: torch.device,
) -> dict[str, Histogram]:
    """A histogram of every group's values over the calibration batches, by the group's first site.

    Args:
        model: in eval mode on `device`.
        task: has the calibration batches.
        groups: sites that share a histogram.
        examples: at most so many.
        device: of the model.

    Raises:
        TaskError: there is no calibration batch.
        ModelError: a value is not finite, or a site is not passed just once with every batch.
    """
    histograms = {group[0]: Histogram(BINS) for group in groups}
    of_site = {site: histograms[group[0]] for group in groups for site in group}
    number = 0
    for inputs in batches_of(task, "calibration", examples):
        number += 1
        passed = observe(model, move(inputs, device), of_site, number)
        missing = next((site for site in of_site if site not in passed), None)
        if missing is not None:
            raise ModelError(
                f"call '{missing}', which the example of task '{task.name}' passes, is not made on "
                f"calibration batch {number}: the network takes its way by the values, so its activations "
                "can't be quantised; use fixed-point, which changes weights only"
            )
    if not number:
        raise TaskError(f"task '{task.name}' yields no calibration batch: its loader is empty")
    return histograms


def observe(
    model: nn.Module, inputs: Inputs, of_site: Mapping[str, Histogram], number: int
) -> set[str]:
    """Adds one batch to the histograms and returns the sites that it passed."""
    passed: set[str] = set()

    def see(site: str, result: Any) -> None:
        histogram = of_site.get(site)
        if histogram is None:
            return
        passed.add(site)
        parts = parts_of(result)
        if not parts:
            raise ModelError(
                f"call '{site}' gave a {type(result).__name__} on calibration batch {number} and a tensor "
                "on the task's example: the network takes its way by the values"
            )
        try:
            for part in parts:
                take_in(histogram, part)
        except ModelError as error:
            raise ModelError(
                f"'{site}' gives NaN or infinity on calibration batch {number}; look for broken inputs, or "
                "leave its layer in float with exclude"
            ) from error

    watch_sites(model, inputs, see)
    return passed


def take_in(histogram: Histogram, result: Tensor) -> None:
    """Adds a batch's values to a histogram: the ends of all, and of each example at most `VALUES`.

    Which of an example's values are counted depends on its size alone, so that the split into batches does
    not matter.

    Raises:
        ModelError: a value is not finite.
    """
    if not result.numel():
        return
    result = result.detach()
    step = -(-result[0].numel() // VALUES) if result.dim() > 1 else 1
    if step > 1:
        low, high = (float(end) for end in torch.aminmax(in_memory_order(result)))
        if math.isfinite(low) and math.isfinite(high):
            histogram.widen(low, high)
            # an odd step walks over all columns of an image
            result = every(result, step + 1 - step % 2)
    histogram.update(result)


def in_memory_order(x: Tensor) -> Tensor:
    """The same tensor with its axes in the order in which they lie in memory."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def every(x: Tensor, step: int) -> Tensor:
    """Of each example of x (B, …) the entries 0, step, 2·step, …, in row-major order, (B, n).

    Nothing else is copied, however the entries lie in memory.
    """
    if x.is_contiguous() or x.dim() < 3:
        return x.flatten(1)[:, ::step]
    places = torch.arange(0, x[0].numel(), step, device=x.device)
    index: list[slice | Tensor] = []
    for size in reversed(x.shape[1:]):
        index.append(places % size)
        places = places // size
    return x[(slice(None), *reversed(index))]
