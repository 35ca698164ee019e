# SPDX-License-Identifier: Apache-2.0
"""Which layers can be replaced by a chain, how they are called, and why the others must stay."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.factorize.decomposition import Decomposition, Ranks
from rarefy.factorize.decompositions import decomposition_for
from rarefy.factorize.kernel import Shape, kernel_of, layer_kind, shape_of
from rarefy.factorize.pieces import Piece, macs_of, whole
from rarefy.factorize.skim import skim
from rarefy.select import Layer, held_weights, stored_parameter
from rarefy.task import Inputs

PLAIN: tuple[Any, ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a layer or a chain costs, its bias left out.

    Attributes:
        parameters: weights.
        macs: multiply-accumulates of all its calls for one example.
    """

    parameters: int
    macs: int


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be replaced.

    Attributes:
        layer: which.
        shape: of its kernel.
        name: of the decomposition that serves it.
        kind: its class.
        calls: shapes of input and output, one pair a call, for one example.
        x: what it is first called with, one example, whose values may be zeros.
    """

    layer: Layer
    shape: Shape
    name: str
    kind: type[Decomposition]
    calls: tuple[tuple[torch.Size, torch.Size], ...] = field(repr=False)
    x: Tensor = field(repr=False)

    @property
    def cost(self) -> Cost:
        """Of the layer as it is."""
        if layer_kind(self.layer.module) == "embedding":
            return Cost(self.layer.weight.numel(), 0)
        return self.cost_of(whole(self.shape))

    def cost_of(self, pieces: Sequence[Piece]) -> Cost:
        """Of a chain in the layer's place."""
        macs = macs_of(self.layer.module, pieces, self.calls)
        return Cost(sum(piece.parameters for piece in pieces), macs)

    def pays(self, decomposition: Decomposition, ranks: Ranks) -> bool:
        """Whether a chain is smaller than the layer and, if that multiplies at all, also cheaper."""
        now, then = self.cost, self.cost_of(decomposition.pieces(ranks))
        return then.parameters < now.parameters and (now.macs == 0 or then.macs < now.macs)

    def decompose(self, moment: Tensor | None, sweeps: int, seed: int) -> Decomposition:
        """The decomposition of the weight as it is now."""
        return self.kind(kernel_of(self.layer), moment, sweeps=sweeps, seed=seed)


def look(
    model: nn.Module, layers: Sequence[Layer], example: Inputs, name: str
) -> tuple[list[Site], dict[str, str]]:
    """The layers that can be replaced, and for each of the others why it can't.

    The network runs once on the example's first row, for the shapes alone.

    Args:
        model: in any mode; it stays as it is.
        layers: that were chosen.
        example: on the model's device.
        name: of the decomposition asked for.
    """
    holders = Counter(id(stored_parameter(m, name)) for _, m, name in held_weights(model))
    reasons = {layer.name: why_not(layer, holders[id(layer.stored)]) for layer in layers}
    able = [layer for layer in layers if not reasons[layer.name]]
    seen = probe(model, able, example)
    sites = []
    for layer in able:
        calls, odd = seen[layer]
        if not calls or odd:
            reasons[layer.name] = odd or "is never called as a module"
            continue
        shape = shape_of(kernel_of(layer))
        kind = layer_kind(layer.module)
        used, cls = decomposition_for(name, shape, kind in ("linear", "turned"))
        shapes = tuple((x.shape, out) for x, out in calls)
        sites.append(Site(layer, shape, used, cls, shapes, calls[0][0]))
    return sites, {path: reason for path, reason in reasons.items() if reason}


def why_not(layer: Layer, holders: int) -> str:
    """Why a layer can't be replaced, whatever it is called with; empty if it can.

    Args:
        layer: that was chosen.
        holders: how many layers hold its weight.
    """
    module = layer.module
    kind = layer_kind(module)
    if not kind or layer.tensor != "weight":
        return "is no linear layer, convolution or embedding"
    cls = type(module)
    if parametrize.is_parametrized(module):
        cls = parametrize.type_before_parametrizations(module)
    base = next((b for b in PLAIN if issubclass(cls, b)), None)
    own = base is not None and (
        cls.forward is not base.forward
        or getattr(cls, "_conv_forward", None) is not getattr(base, "_conv_forward", None)
    )
    if own or (base is None and kind != "turned"):
        return f"computes in a way of its own ({cls.__name__})"
    if module._forward_hooks or module._forward_pre_hooks:
        return "carries hooks, which would be lost"
    if holders > 1:
        return "shares its weight with another layer"
    if kind == "embedding" and module.max_norm is not None:
        return "renormalises its rows"
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "takes the largest of its rows"
    return ""


def probe(
    model: nn.Module, layers: Sequence[Layer], example: Inputs
) -> dict[Layer, tuple[list[tuple[Tensor, torch.Size]], str]]:
    """For every layer its inputs and output shapes, and what is odd about its calls."""
    found: dict[Layer, tuple[list[tuple[Tensor, torch.Size]], str]] = {}

    def after(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, (calls, _) = [*args, *kwargs.values()], found[layer]
        if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
            found[layer] = (calls, "is called with more than its input")
        else:
            calls.append((given[0], output.shape))

    def begin() -> None:
        found.update((layer, ([], "")) for layer in layers)

    with ExitStack() as stack:
        for layer in layers:
            hook = layer.module.register_forward_hook(
                lambda _, args, kwargs, output, layer=layer: after(layer, args, kwargs, output),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        skim(model, example, begin)
    return found
