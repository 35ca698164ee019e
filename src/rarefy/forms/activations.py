# SPDX-License-Identifier: Apache-2.0
"""Quantisers on activations, attached to call sites of a network without rewriting it.

A site is the output of one function call (see `rarefy.graph.calls`) or an input of the network
(``input#0``), so additions and concatenations are reached as well as layers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.forms.grid import Grid
from rarefy.forms.operators import fake_quantize
from rarefy.graph.calls import CallWatcher

CHILD = "activation_quantizers"


def parts_of(result: Any) -> tuple[Tensor, ...]:
    """What a call gave: one tensor, or the parts that it cut one into; nothing if it was something else."""
    if isinstance(result, Tensor):
        return (result,)
    if not isinstance(result, (tuple, list)):
        return ()
    floats = all(isinstance(part, Tensor) and part.is_floating_point() for part in result)
    return tuple(result) if floats else ()


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to a grid with one scale; the gradient goes straight through.

    Args:
        scale, zero_point: () tensors.
        grid: the integers.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        self.bits, self.signed, self.low, self.high = grid.bits, grid.signed, grid.low, grid.high
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, -1, self.low, self.high)


class QuantizingWatcher(CallWatcher):
    """Quantises what leaves the sites that have a quantiser.

    Args:
        model: the network.
        at_site: quantisers.
        unrounded: pairs of a call and a site whose value it reads as it was before the quantiser.
    """

    def __init__(
        self,
        model: nn.Module,
        at_site: Mapping[str, nn.Module],
        unrounded: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(model)
        self.at_site = at_site
        pairs = [(reader, site) for reader, site in unrounded if site in at_site]
        self.readers = {reader for reader, _ in pairs}
        self.waiting = Counter(site for _, site in pairs)
        self.before: dict[int, tuple[str, Tensor, Tensor]] = {}

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if site in self.readers:
            (args, kwargs), found = self.taken_back((args, kwargs))
            for number in found:
                self.forget(number)
        result = func(*args, **kwargs)
        quantizer = self.at_site.get(site)
        if quantizer is None:
            return result
        if self.waiting[site] and isinstance(result, Tensor):
            rounded = self.rounded(quantizer, result)
            self.before[id(rounded)] = (site, rounded, result)
            return rounded
        parts = parts_of(result)
        if not parts:
            raise ModelError(
                f"call '{site}' gave a {type(result).__name__} where a tensor was calibrated"
            )
        if isinstance(result, Tensor):
            return self.rounded(quantizer, result)
        return tuple(self.rounded(quantizer, part) for part in parts)

    def rounded(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        """What a quantiser makes of a value."""
        return cast(Tensor, quantizer(x))

    def taken_back(self, values: Any) -> tuple[Any, set[int]]:
        """Arguments with what they were before quantisers, and which tensors that were."""
        if isinstance(values, dict):
            parts, found = self.taken_back(list(values.values()))
            return (dict(zip(values, parts, strict=True)) if found else values), found
        if isinstance(values, (tuple, list)):
            pairs = [self.taken_back(value) for value in values]
            found = {number for _, numbers in pairs for number in numbers}
            return (type(values)([value for value, _ in pairs]) if found else values), found
        held = self.before.get(id(values))
        return (values, set()) if held is None else (held[2], {id(values)})

    def forget(self, number: int) -> None:
        """Lets a value go that no call waits for any more."""
        site = self.before[number][0]
        self.waiting[site] -= 1
        if not self.waiting[site]:
            del self.before[number]


class ActivationQuantizers(nn.Module):
    """All activation quantisers of a network; a child module of it, so they are saved and moved with it.

    Args:
        sites: names of the sites, in order.
        quantizers: one for each.
        unrounded: see `QuantizingWatcher`.
    """

    def __init__(
        self,
        sites: list[str],
        quantizers: list[nn.Module],
        unrounded: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__()
        self.sites = list(sites)
        self.unrounded = list(unrounded)
        self.quantizers = nn.ModuleList(quantizers)
        self.active: list[ExitStack] = []

    def at_site(self) -> dict[str, nn.Module]:
        """The quantisers by site."""
        return dict(zip(self.sites, self.quantizers, strict=True))

    def attach(self, model: nn.Module) -> None:
        """Becomes a child of `model` and acts in every forward pass of it from now on."""
        setattr(model, CHILD, self)
        model.register_forward_pre_hook(self.enter, with_kwargs=True)
        model.register_forward_hook(self.leave, always_call=True)

    def enter(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        """Before a forward pass: quantises the inputs and watches the calls."""
        stack = ExitStack()
        by_site = self.at_site()
        stack.enter_context(QuantizingWatcher(model, by_site, self.unrounded).watching())
        self.active.append(stack)
        names = {f"input#{i}": value for i, value in enumerate((*args, *kwargs.values()))}
        values = [
            by_site[name](value) if name in by_site else value for name, value in names.items()
        ]
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    def leave(self, model: nn.Module, args: Any, outputs: Any) -> None:
        """After a forward pass, also after a failed one."""
        self.active.pop().close()

    def forward(self, x: Any) -> Any:
        """Passes its input on: an `nn.Sequential` calls all its children, this one last."""
        return x


def quantizers_of(model: nn.Module) -> ActivationQuantizers | None:
    """The activation quantisers attached to a network, or None."""
    found = getattr(model, CHILD, None)
    return found if isinstance(found, ActivationQuantizers) else None


def detach_quantizers(model: nn.Module) -> None:
    """Takes activation quantisers off a network."""
    found = quantizers_of(model)
    if found is None:
        return
    delattr(model, CHILD)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) is found:
                del hooks[key]
                for flags in (
                    model._forward_pre_hooks_with_kwargs,
                    model._forward_hooks_with_kwargs,
                    model._forward_hooks_always_called,
                ):
                    flags.pop(key, None)


def quantize_sites(
    model: nn.Module,
    ranges: Mapping[str, tuple[float, float]],
    grid_of: Callable[[str], Grid],
    unrounded: Iterable[tuple[str, str]] = (),
) -> ActivationQuantizers:
    """Attaches a quantiser to every site, on the grid that covers its range.

    Args:
        model: changed in place.
        ranges: (lowest, highest) value of each site.
        grid_of: the integers of a site.
        unrounded: see `QuantizingWatcher`.
    """
    from rarefy.forms.grid import grid_for_range

    device = next(model.parameters()).device
    quantizers: list[nn.Module] = []
    for site, (low, high) in ranges.items():
        grid = grid_of(site)
        ends = torch.tensor([low, high], dtype=torch.float64)
        scale, zero_point = grid_for_range(ends[0], ends[1], grid)
        quantizers.append(ActivationQuantizer(scale.to(device), zero_point.to(device), grid))
    detach_quantizers(model)
    holder = ActivationQuantizers(list(ranges), quantizers, unrounded)
    holder.attach(model)
    return holder
