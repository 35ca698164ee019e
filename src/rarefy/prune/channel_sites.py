# SPDX-License-Identifier: Apache-2.0
"""Where the units of coupled groups can be seen while a network runs.

A unit is seen where it is heard: at the inputs of the layers that read it, behind whatever nonlinearity,
norm or pooling lies between. What is zero there can go without a trace. Where a reader is no module of its
own, the outputs of the layers that give the unit are taken.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rarefy.graph.groups import Group
from rarefy.loops.modes import evaluating
from rarefy.task import call

Change = Callable[["Site", Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor that carries the units of a group.

    Attributes:
        module: path of the module that reads or gives it.
        side: ``"input"`` or ``"output"`` of the module.
        axis: of the channels, counted from the end.
        length: of that axis.
        places, units: positions along it, and the unit that each belongs to, both (m,).
        size: units of the group.
    """

    module: str
    side: Literal["input", "output"]
    axis: int
    length: int
    places: Tensor
    units: Tensor
    size: int

    def by_unit(self, values: Tensor) -> Tensor:
        """Adds up numbers per channel (…, length) to numbers per unit (…, size)."""
        values = values.double().cpu()
        total = torch.zeros(*values.shape[:-1], self.size, dtype=torch.float64)
        return total.index_add_(-1, self.units, values[..., self.places])

    def mean_by_unit(self, values: Tensor) -> Tensor:
        """Averages numbers per channel (…, length) over the channels of each unit, (…, size)."""
        return self.by_unit(values) / torch.bincount(self.units, minlength=self.size).clamp(min=1)


def path_of(name: str) -> str:
    """The module that holds a parameter, whatever forms the parameter wears."""
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else owner(name)


def owner(name: str) -> str:
    """``"a.b"`` for ``"a.b.weight"``; parametrizations of the top module belong to it."""
    path = name.rpartition(".")[0]
    return "" if path.startswith("parametrizations.") else path


def channel_axis(module: nn.Module) -> int:
    """The axis of a layer's channels, counted from the end."""
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1


def sites_of(model: nn.Module, group: Group) -> tuple[list[Site], list[Site]]:
    """Where a group can be seen: at its readers' inputs, and at the outputs of what gives it."""
    found: tuple[list[Site], list[Site]] = ([], [])
    held = dict(model.named_parameters())
    for member in group.members:
        if member.role not in ("in", "out") or member.name not in held:
            continue
        path = path_of(member.name)
        module = model.get_submodule(path)
        reads = member.role == "in"
        if reads and isinstance(module, nn.Embedding):
            continue
        length = held[member.name].shape[member.axis]
        side: Literal["input", "output"] = "input" if reads else "output"
        site = Site(
            path, side, channel_axis(module), length, member.places, member.units, group.size
        )
        found[0 if reads else 1].append(site)
    return found


def fits(site: Site, x: Any) -> bool:
    """Whether a tensor has the channels of a site; the first axis counts examples."""
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.dim() > -site.axis
        and x.shape[site.axis] == site.length
    )


@contextmanager
def observed(model: nn.Module, sites: Iterable[Site], change: Change) -> Iterator[None]:
    """For a while, replaces the tensor at each site by ``change(site, tensor)`` for that module alone."""

    def hooked(site: Site) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if args and fits(site, args[0]):
                return (change(site, args[0]), *args[1:])
            return None

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return change(site, output) if fits(site, output) else None

        return before, after

    with ExitStack() as stack:
        for site in sites:
            module, (before, after) = model.get_submodule(site.module), hooked(site)
            handle = (
                module.register_forward_pre_hook(before)
                if site.side == "input"
                else module.register_forward_hook(after)
            )
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def visible_sites(
    model: nn.Module, groups: Sequence[Group], inputs: Any
) -> dict[str, tuple[Site, ...]]:
    """Group → the sites that a run passes through; groups that can't be seen anywhere are missing.

    Args:
        model: run once in eval mode.
        groups: of its coupling.
        inputs: a batch on the model's device.
    """
    choices = {group.name: sites_of(model, group) for group in groups}
    seen: set[Site] = set()

    def note(site: Site, x: Tensor) -> Tensor:
        seen.add(site)
        return x

    every = [site for sides in choices.values() for side in sides for site in side]
    with evaluating(model), observed(model, every, note):
        call(model, inputs)
    found = {}
    for name, (inputs_of, outputs_of) in choices.items():
        heard = all(site in seen for site in inputs_of) and inputs_of
        chosen = tuple(inputs_of if heard else (s for s in outputs_of if s in seen))
        if chosen:
            found[name] = chosen
    return found
