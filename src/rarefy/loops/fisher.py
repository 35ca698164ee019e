# SPDX-License-Identifier: Apache-2.0
"""The diagonal of the Fisher information of weights: mean squares of single examples' gradients."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from rarefy.batches import mapped
from rarefy.errors import ModelError
from rarefy.forms.shadow import forms_of, store_dense
from rarefy.loops.gradients import requiring_grad
from rarefy.loops.modes import device_of, evaluating
from rarefy.select import Layer
from rarefy.task import Loss, call, move, split, tensors_of

AT_ONCE = 2**26  # gradient entries of single examples that are held at a time


class Fisher:
    """Sums of squared gradients of single examples, by layer name; streams and merges.

    Attributes:
        squares: sum over the examples, float64, shaped like the weight.
        count: examples so far.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}
        self.count = 0

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """Takes the gradients (B, *weight) of B examples in."""
        for name, g in gradients.items():
            found = g.detach().double().square().sum(0)
            held = self.squares.get(name)
            self.squares[name] = found if held is None else held + found
        self.count += next((len(g) for g in gradients.values()), 0)

    def merge(self, other: Self) -> Self:
        """Adds what another one has seen."""
        for name, found in other.squares.items():
            held = self.squares.get(name)
            self.squares[name] = found.clone() if held is None else held + found
        self.count += other.count
        return self

    def diagonal(self) -> dict[str, Tensor]:
        """F by layer name: the mean of the squared gradients.

        Raises:
            ModelError: no example was seen.
        """
        if not self.count:
            raise ModelError("no example was seen, so there is no Fisher information")
        return {name: total / self.count for name, total in self.squares.items()}


def gather_fisher(
    model: nn.Module, batches: Iterable[Any], layers: Sequence[Layer], loss: Loss
) -> Fisher:
    """The empirical Fisher information of the layers' weights as the network uses them.

    Every example's gradient is squared by itself; the square of a batch's mean gradient would let
    opposite gradients cancel. Examples go through ``torch.func.vmap`` together where the network allows,
    one by one where it does not (control flow that depends on data, operators without a batching rule).
    The network runs in eval mode and is left unchanged.

    Args:
        model: on its device. Examples must not influence each other.
        batches: labelled, batch first.
        layers: of `model`; a weight that wears forms counts with its values.
        loss: ``(outputs, targets) -> mean over the batch``, for example the task's.
    """
    plain, names = undressed(model, layers)
    result, together = Fisher(), True
    with evaluating(plain):
        for raw in batches:
            inputs, targets = split(raw)
            inputs, targets = move(inputs, device_of(plain)), move(targets, device_of(plain))
            if together:
                try:
                    result.merge(at_once(plain, names, inputs, targets, loss))
                    continue
                except RuntimeError:  # vmap refuses many kinds of operators with this
                    together = False
            result.merge(one_by_one(plain, names, inputs, targets, loss))
    return result


def undressed(model: nn.Module, layers: Sequence[Layer]) -> tuple[nn.Module, dict[str, str]]:
    """The network, or a copy whose layers hold plain weights; the layers' names by parameter name."""
    if any(forms_of(layer.module, layer.tensor) for layer in layers):
        values = {layer: layer.weight.detach() for layer in layers}
        model = copy.deepcopy(model)
        for layer, value in values.items():
            store_dense(model.get_submodule(layer.name), layer.tensor, value)
    parameters = {f"{x.name}.{x.tensor}".removeprefix("."): x.name for x in layers}
    return model, parameters


def at_once(
    model: nn.Module, names: Mapping[str, str], inputs: Any, targets: Any, loss: Loss
) -> Fisher:
    """The gradients of a batch's examples by vmap, in chunks that fit into memory."""
    own = dict(model.named_parameters())
    chosen = {name: own[name].detach() for name in names}
    rest = {n: t.detach() for n, t in (*own.items(), *model.named_buffers()) if n not in names}

    def single(weights: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, {**rest, **weights}, args, kwargs)

        return loss(call(run, batched(x)), batched(y))

    size = len(tensors_of(inputs)[0])
    entries = sum(t.numel() for t in chosen.values())
    chunk = max(1, min(size, AT_ONCE // max(entries, 1)))
    result = Fisher()
    for start in range(0, size, chunk):
        part, answers = (take(v, slice(start, start + chunk)) for v in (inputs, targets))
        found = vmap(grad(single), in_dims=(None, 0, 0))(chosen, part, answers)
        result.update({names[name]: g for name, g in found.items()})
    return result


def one_by_one(
    model: nn.Module, names: Mapping[str, str], inputs: Any, targets: Any, loss: Loss
) -> Fisher:
    """The same by one backward pass for each example."""
    own = dict(model.named_parameters())
    chosen = [own[name] for name in names]
    result = Fisher()
    for i in range(len(tensors_of(inputs)[0])):
        x, y = (take(v, slice(i, i + 1)) for v in (inputs, targets))
        with torch.enable_grad(), requiring_grad(chosen):
            value = loss(call(model, x), y)
            found = torch.autograd.grad(value, chosen, allow_unused=True)
        result.update(
            {
                names[name]: (torch.zeros_like(own[name]) if g is None else g).unsqueeze(0)
                for name, g in zip(names, found, strict=True)
            }
        )
    return result


def take(values: Any, part: slice) -> Any:
    """A part of every tensor's first axis."""
    return mapped(values, lambda t: t[part])


def batched(values: Any) -> Any:
    """An example as a batch of one."""
    return mapped(values, lambda t: t.unsqueeze(0))
