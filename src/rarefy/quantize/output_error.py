# SPDX-License-Identifier: Apache-2.0
"""Which of several ranges for a tensor changes least what is computed from it.

Every call that reads the tensor is made again with the tensor rounded on each of the ranges; the one wins
whose results, clipped as the network clips them, are nearest to the unrounded ones in relation to their size.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rarefy.forms.grid import Grid, grid_for_range
from rarefy.graph.calls import Call, Calls, CallWatcher
from rarefy.quantize.flow import Flow, flow_of
from rarefy.quantize.kernels import Runtime, kind
from rarefy.quantize.placement import Placement, vanishes
from rarefy.task import Inputs, call

Range = tuple[float, float]
Clip = tuple[float | None, float | None]


@dataclass
class Reader:
    """A call that reads tensors of which the range is open.

    Attributes:
        groups: for the place of an input tensor the group it belongs to.
        clip: between which values its result is cut, None for no end.
    """

    groups: dict[int, str]
    clip: Clip = (None, None)


@dataclass
class Errors:
    """For every group the relative errors of its candidates, summed over readers and batches.

    Attributes:
        candidates: ranges by the first site of a group.
        sums: (candidates,) by the same.
    """

    candidates: Mapping[str, list[Range]]
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, group: str, errors: Tensor) -> None:
        """Takes in what one reader found on one batch."""
        self.sums[group] = self.sums.get(group, torch.zeros_like(errors)) + errors

    def best(self, group: str) -> Range | None:
        """The range of least error, or None where no reader was asked."""
        found = self.sums.get(group)
        return None if found is None else self.candidates[group][int(found.argmin())]


class ReaderWatcher(CallWatcher):
    """Makes the calls of readers again on rounded inputs."""

    def __init__(
        self, model: nn.Module, readers: Mapping[str, Reader], errors: Errors, grid: Grid
    ) -> None:
        super().__init__(model)
        self.readers, self.errors, self.grid = readers, errors, grid

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        reader = self.readers.get(site)
        if reader is None:
            return func(*args, **kwargs)
        leaves, shape = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for number, group in reader.groups.items():
            self.try_ranges(func, leaves, shape, places[number], group, reader.clip)
        return func(*args, **kwargs)

    def try_ranges(
        self,
        func: Callable[..., Any],
        leaves: list[Any],
        shape: Any,
        place: int,
        group: str,
        clip: Clip,
    ) -> None:
        """Adds the errors of all ranges of one input of one call."""

        def result(of: Tensor) -> Tensor:
            args, kwargs = pytree.tree_unflatten([*leaves[:place], of, *leaves[place + 1 :]], shape)
            found = func(*args, **kwargs)
            return found if clip == (None, None) else found.clamp(*clip)

        x = leaves[place]
        exact = result(x)
        size = torch.linalg.vector_norm(exact).clamp(min=1e-30)
        errors = [
            (torch.linalg.vector_norm(result(rounded(x, found, self.grid)) - exact) / size).square()
            for found in self.errors.candidates[group]
        ]
        self.errors.add(group, torch.stack(errors).cpu())


def rounded(x: Tensor, ends: Range, grid: Grid) -> Tensor:
    """A tensor on the grid that covers a range, in one new tensor."""
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    scale, zero_point = grid_for_range(low, high, grid)
    step, zero = float(scale), int(zero_point)
    codes = torch.div(x.float(), step).round_().clamp_(grid.low - zero, grid.high - zero)
    return codes.mul_(step).to(x.dtype)


def readers_of(
    calls: Calls, floating: Iterable[str], placement: Placement, runtime: Runtime
) -> dict[str, Reader]:
    """The integer calls that multiply, by site, with the groups of what they read."""
    flow = flow_of(calls, set(floating), runtime)
    group_of = {site: group[0] for group in placement.groups for site in group}
    readers: dict[str, Reader] = {}
    for item in calls.calls:
        if item.site not in placement.integer or kind(item) not in ("conv", "linear", "matmul"):
            continue
        groups = {
            number: group_of[value.site]
            for number, value in enumerate(flow.read[item.site])
            if value is not None and value.site in group_of
        }
        if groups:
            readers[item.site] = Reader(groups, clip_behind(item, flow, runtime))
    return readers


def clip_behind(item: Call, flow: Flow, runtime: Runtime) -> Clip:
    """Between which values the result of a call is cut by the clip that alone reads it."""
    made = [value for value in flow.values if value.maker is item]
    if not made or not vanishes(made[0], runtime):
        return None, None
    clip = made[0].readers[0]
    if clip.function == "relu6":
        return 0.0, 6.0
    if kind(clip) == "hardtanh":
        ends = [float(a) for a in clip.arguments[1:3] if isinstance(a, (int, float))]
        return (ends[0], ends[1]) if len(ends) == 2 else (None, None)
    return (0.0, None) if kind(clip) == "relu" else (None, None)


@torch.no_grad()
def output_errors(
    model: nn.Module,
    batches: Iterable[Inputs],
    readers: Mapping[str, Reader],
    candidates: Mapping[str, list[Range]],
    grid: Grid,
) -> Errors:
    """Runs the unrounded network over batches and tries the ranges at every reader.

    Memory: two results of one call more than a forward pass needs.
    """
    errors = Errors(candidates)
    for inputs in batches:
        with ReaderWatcher(model, readers, errors, grid).watching():
            call(model, inputs)
    return errors
