# SPDX-License-Identifier: Apache-2.0
"""What the rounding of one layer does, to its own result and to the network's answers, all else unrounded."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rarefy.forms.grid import Grid
from rarefy.graph.calls import CallWatcher
from rarefy.quantize.output_error import Range, Reader, rounded
from rarefy.task import Inputs, call, logits_of, same_answer


@dataclass(frozen=True)
class Rounding:
    """How integer calls are rounded.

    Attributes:
        readers: the integer calls by site, see `rarefy.quantize.output_error.readers_of`.
        ranges: by the first site of a group.
        grid: of activations.
        weight: from a module's path to its rounded weight, or None if it holds none.
        holding: paths of the modules that hold one.
    """

    readers: Mapping[str, Reader]
    ranges: Mapping[str, Range]
    grid: Grid
    weight: Callable[[str], Tensor | None]
    holding: Collection[str]


@dataclass
class Noise:
    """Squares of a result and of its error, summed."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, exact: Tensor, found: Tensor) -> None:
        """Takes in one result."""
        self.signal += float(torch.linalg.vector_norm(exact)) ** 2
        self.error += float(torch.linalg.vector_norm(found - exact)) ** 2

    @property
    def decibels(self) -> float:
        """Signal over noise; 200 at most, where there is none."""
        if not self.error or not self.signal:
            return 200.0 if not self.error else -200.0
        return max(min(10 * math.log10(self.signal / self.error), 200.0), -200.0)


class RoundingWatcher(CallWatcher):
    """Makes integer calls again with everything rounded that they read.

    Args:
        model: unrounded.
        how: the rounding.
        watched: sites that are looked at; None for all.
        passes_on: whether the network goes on with the rounded result.
    """

    def __init__(
        self, model: nn.Module, how: Rounding, watched: Collection[str] | None, passes_on: bool
    ) -> None:
        super().__init__(model)
        self.how, self.watched, self.passes_on = how, watched, passes_on
        self.noise: dict[str, Noise] = {}

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        reader = self.how.readers.get(site)
        if reader is None or (self.watched is not None and site not in self.watched):
            return func(*args, **kwargs)
        exact, found = func(*args, **kwargs), self.rounded(site, func, args, kwargs)
        clipped = [
            t if reader.clip == (None, None) else t.clamp(*reader.clip) for t in (exact, found)
        ]
        self.noise.setdefault(site, Noise()).add(*clipped)
        return found if self.passes_on else exact

    def rounded(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What an integer call gives when everything is rounded that it reads."""
        leaves, shape = pytree.tree_flatten((args, kwargs))
        self.round_leaves(leaves, self.how.readers[site], site.rpartition(":")[0])
        args, kwargs = pytree.tree_unflatten(leaves, shape)
        return func(*args, **kwargs)

    def round_leaves(self, leaves: list[Any], reader: Reader, path: str) -> None:
        """Puts rounded tensors in the places of a call's inputs and weight."""
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for number, group in reader.groups.items():
            place = places[number]
            leaves[place] = rounded(leaves[place], self.how.ranges[group], self.how.grid)
        weight = self.how.weight(path)
        for number, place in enumerate(places):
            if number in reader.groups or weight is None:
                continue
            if leaves[place].shape in (weight.shape, weight.T.shape if weight.dim() == 2 else None):
                leaves[place] = weight if leaves[place].shape == weight.shape else weight.T
                break


@torch.no_grad()
def layer_noise(model: nn.Module, batches: Iterable[Inputs], how: Rounding) -> dict[str, float]:
    """Signal to noise of every integer call's own result in decibels, by site; one forward pass a batch."""
    noise: dict[str, Noise] = {}
    for inputs in batches:
        watcher = RoundingWatcher(model, how, None, passes_on=False)
        with watcher.watching():
            call(model, inputs)
        for site, found in watcher.noise.items():
            total = noise.setdefault(site, Noise())
            total.signal, total.error = total.signal + found.signal, total.error + found.error
    return {site: found.decibels for site, found in noise.items()}


@dataclass(frozen=True)
class Damage:
    """What one integer call does to the network's output if it alone is rounded.

    Attributes:
        site: of the call.
        output_error: squared error of the output over its square.
        agreement: share of examples with the same answer, or mean cosine.
    """

    site: str
    output_error: float
    agreement: float


@torch.no_grad()
def output_damage(
    model: nn.Module, inputs: Inputs, how: Rounding, sites: Iterable[str]
) -> list[Damage]:
    """The damage of each call by itself, one forward pass for each, worst first."""
    exact = logits_of(call(model, inputs)).float()
    found = []
    for site in sites:
        with RoundingWatcher(model, how, {site}, passes_on=True).watching():
            answer = logits_of(call(model, inputs)).float()
        error = float((answer - exact).square().sum() / exact.square().sum().clamp(min=1e-30))
        found.append(Damage(site, error, float(same_answer(answer, exact).mean())))
    return sorted(found, key=lambda damage: -damage.output_error)
