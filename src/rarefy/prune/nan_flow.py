# SPDX-License-Identifier: Apache-2.0
"""Which units of a network depend on its inputs and which reach its answers, found by letting NaN flow.

In a layer NaN passes along non-zero weights only, elsewhere torch's own rules carry it. What stays free of
NaN when all inputs are NaN is a constant; a unit whose NaN does not reach the answer is unheard. This needs
no map of the network and holds for any of them, unless a comparison swallows a NaN.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.batches import mapped
from rarefy.forms.shadow import store_dense
from rarefy.loops.matrix import living_units
from rarefy.select import Layer, is_embedding
from rarefy.task import Inputs, call, tensors_of

AT_ONCE = 64  # units that are tried in one pass


def plain_copy(model: nn.Module, layers: Sequence[Layer]) -> nn.Module:
    """A copy whose layers hold plain weights, zeros where they are masked."""
    plain = copy.deepcopy(model)
    for layer in layers:
        store_dense(plain.get_submodule(layer.name), layer.tensor, layer.weight.detach())
    return plain


def product(module: nn.Module, weight: Tensor, x: Tensor, *more: Any, **options: Any) -> Tensor:
    """A plain layer's output for another weight and without its bias; no hook runs."""
    own = dict(module._parameters)
    bias = own.get("bias")
    try:
        module._parameters["weight"] = weight  # type: ignore[assignment]
        if bias is not None:
            module._parameters["bias"] = torch.zeros_like(bias)  # type: ignore[assignment]
        return module.forward(x, *more, **options)
    finally:
        module._parameters.update(own)


@contextmanager
def nan_along_weights(model: nn.Module, layers: Sequence[Layer]) -> Iterator[None]:
    """For a while NaN passes through layers of a plain copy along non-zero weights only."""

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x, more = args[0], args[1:]
        unknown = x.isnan()
        if not bool(unknown.any()):
            return None
        known = module.forward(x.nan_to_num(0.0), *more, **kwargs)
        living = (module.weight != 0).to(x.dtype)  # type: ignore[union-attr]
        reached = product(module, living, unknown.to(x.dtype), *more, **kwargs)
        return known.masked_fill(reached > 0.5, torch.nan)

    with ExitStack() as stack:
        for layer in layers:
            module = model.get_submodule(layer.name)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


def unit_axis(module: nn.Module, x: Tensor) -> int:
    """The axis of a layer's input or output that counts its units."""
    return x.dim() - 1 - len(getattr(module, "kernel_size", ()))


def by_unit(module: nn.Module, x: Tensor) -> Tensor:
    """An input or output of a layer as (units, everything else)."""
    return x.movedim(unit_axis(module, x), 0).flatten(1)


def constants(plain: nn.Module, layers: Sequence[Layer], inputs: Inputs) -> dict[Layer, Tensor]:
    """For every layer that runs once, its input for one unknown example: NaN where it can vary."""
    seen: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}

    def blur(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.full_like(output, torch.nan)

    def unknown(t: Tensor) -> Tensor:
        return torch.full_like(t[:1], torch.nan) if t.is_floating_point() else t[:1]

    with ExitStack() as stack:
        for layer, held in seen.items():
            module = plain.get_submodule(layer.name)
            look = module.register_forward_pre_hook(lambda _, a, held=held: held.append(a[0]))
            stack.callback(look.remove)
        for module in plain.modules():
            if is_embedding(module):  # integers can't be NaN
                stack.callback(module.register_forward_hook(blur).remove)
        stack.enter_context(nan_along_weights(plain, layers))
        call(plain, mapped(inputs, unknown))
    return {layer: held[0] for layer, held in seen.items() if len(held) == 1}


def silent_units(plain: nn.Module, layers: Sequence[Layer], inputs: Inputs) -> dict[Layer, Tensor]:
    """Units with living weights or a bias that the answers do not follow on this batch."""
    outputs: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}
    for p in plain.parameters():
        p.requires_grad_(p.is_floating_point())
    with ExitStack() as stack:
        for layer, held in outputs.items():
            look = plain.get_submodule(layer.name).register_forward_hook(
                lambda _, __, y, held=held: held.append(y)
            )
            stack.callback(look.remove)
        stack.enter_context(torch.enable_grad())
        answers = [t for t in tensors_of(call(plain, inputs)) if t.requires_grad]
        generator = torch.Generator().manual_seed(0)
        mixed = [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in answers]
        every = [y for held in outputs.values() for y in held]
        slopes = torch.autograd.grad(sum(mixed, torch.zeros(())), every, allow_unused=True)
    found, slope = {}, iter(slopes)
    for layer, held in outputs.items():
        module = plain.get_submodule(layer.name)
        units = living_units(module, layer.weight)
        if (bias := module._parameters.get("bias")) is not None:
            units = units | (bias != 0)
        for g in (next(slope) for _ in held):
            units = units & ~(by_unit(module, g) != 0).any(1) if g is not None else units
        found[layer] = units
    return found


def unheard_units(plain: nn.Module, layers: Sequence[Layer], inputs: Inputs) -> dict[Layer, Tensor]:
    """(units,) for every layer: whether no answer depends on the unit, whatever the inputs."""
    found = silent_units(plain, layers, inputs)
    for layer, units in found.items():
        for part in units.nonzero().flatten().split(AT_ONCE):
            units[part] = ~heard(plain, layers, layer, part, inputs)
    return found


def heard(
    plain: nn.Module, layers: Sequence[Layer], layer: Layer, units: Tensor, inputs: Inputs
) -> Tensor:
    """Whether NaN in a unit reaches the answer; each unit is tried on an example of its own."""
    B, module = len(units), plain.get_submodule(layer.name)
    examples = mapped(inputs, lambda t: t[:1].expand(B, *t.shape[1:]).clone())

    def spoil(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        spoilt = output.clone()
        by_example = spoilt.movedim(unit_axis(module, spoilt), 1)
        if len(spoilt) == B:
            by_example[torch.arange(B), units] = torch.nan
        else:  # examples are not told apart here, so all units are tried together
            by_example[:, units] = torch.nan
        return spoilt

    with nan_along_weights(plain, layers):
        hook = module.register_forward_hook(spoil)
        try:
            answers = tensors_of(call(plain, examples))
        finally:
            hook.remove()
    reached = torch.zeros(B, dtype=torch.bool, device=units.device)
    for t in answers:
        apart = len(t) == B and t.is_floating_point()
        reached |= t.isnan().flatten(1).any(1) if apart else torch.ones_like(reached)
    return reached
