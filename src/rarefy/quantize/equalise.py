# SPDX-License-Identifier: Apache-2.0
"""Channels of neighbouring layers get equal ranges, so that one scale for a whole weight serves all of them.

Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias
Correction, 2019, arXiv 1906.04721, sections 4.1 (equations 7 to 11). The network computes the same.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rarefy.graph.fold import fold_batch_norms, raw_weight
from rarefy.loops.blocks import put_module
from rarefy.quantize.chains import Pair, pairs_of_layers
from rarefy.step import Context, Count, Step
from rarefy.task import Inputs, move


def equalising_factors(first: Tensor, second: Tensor) -> Tensor:
    """s = sqrt(r1 · r2) / r2, by which outputs of the first layer are divided; 1 where a range is empty.

    Args:
        first: (channels,) r1, largest absolute weight of each output of the first layer.
        second: (channels,) r2, of each input of the second layer.
    """
    usable = (first > 0) & (second > 0)
    s = torch.sqrt(first / second)
    return torch.where(usable & torch.isfinite(s) & (s > 0), s, torch.ones_like(s))


def by_inputs(layer: Any, weight: Tensor) -> Tensor:
    """A weight as (groups, outputs / groups, inputs / groups, rest), to be scaled by its inputs."""
    groups = int(getattr(layer, "groups", 1))
    return weight.flatten(2).unsqueeze(-1).flatten(2).unflatten(0, (groups, -1))


def input_reach(layer: nn.Module, channels: int) -> Tensor:
    """(channels,) largest absolute weight that reads each channel; a linear layer may read one many times."""
    w = by_inputs(layer, raw_weight(layer).unsqueeze(-1)).abs()  # (G, O/G, I/G, k)
    return w.amax((1, 3)).flatten().unflatten(0, (channels, -1)).amax(1)


def output_reach(layer: nn.Module) -> Tensor:
    """(outputs,) largest absolute weight of each output."""
    return raw_weight(layer).abs().flatten(1).amax(1)


@torch.no_grad()
def divide_outputs(layer: Any, s: Tensor) -> None:
    """Divides weights and biases of each output by s (outputs,)."""
    w = raw_weight(layer)
    w.div_(s.view(-1, *[1] * (w.dim() - 1)).to(w.dtype))
    if layer.bias is not None:
        layer.bias.div_(s.to(layer.bias.dtype))


@torch.no_grad()
def multiply_inputs(layer: Any, s: Tensor) -> None:
    """Multiplies the weights that read each channel by s (channels,)."""
    w = raw_weight(layer)
    groups = int(getattr(layer, "groups", 1))
    inputs = w.shape[1] * groups
    factors = s.repeat_interleave(inputs // len(s)).to(
        w.dtype
    )  # flattened maps: places of a channel
    by_group = factors.view(groups, 1, -1).expand(groups, w.shape[0] // groups, -1)
    w.mul_(by_group.reshape(w.shape[0], w.shape[1], *[1] * (w.dim() - 2)))


@torch.no_grad()
def equalise_pairs(
    model: nn.Module, pairs: Iterable[Pair], rounds: int = 20, tolerance: float = 1e-4
) -> dict[str, Tensor]:
    """Equalises pair after pair until no factor is further than `tolerance` from 1.

    Returns:
        For the first layer of each pair what its outputs were divided by, (outputs,), in all.
    """
    listed = list(pairs)
    total: dict[str, Tensor] = {}
    for _ in range(rounds):
        widest = 0.0
        for pair in listed:
            first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
            reach = output_reach(first).double()
            s = equalising_factors(reach, input_reach(second, len(reach)).double())
            divide_outputs(first, s)
            multiply_inputs(second, s)
            total[pair.first] = total.get(pair.first, torch.ones_like(s)) * s
            widest = max(widest, float((s - 1).abs().max()))
        if widest <= tolerance:
            break
    return total


def replace_clips(model: nn.Module) -> list[str]:
    """Puts a ReLU in the place of every ReLU6, whose upper end no factor of a channel passes; their paths."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.ReLU6)]
    for path in paths:
        put_module(model, path, nn.ReLU())
    return paths


def equalised(
    model: nn.Module,
    example: Inputs,
    clips: str,
    rounds: int,
    within: Collection[str] | None = None,
) -> tuple[list[Pair], dict[str, Tensor], list[str]]:
    """Equalises a folded network in place: pairs, factors of their first layers, replaced clips.

    Args:
        model: changed in place.
        example: a batch on its device.
        clips: ``"keep"`` or ``"replace"``.
        rounds: passes over all pairs, at most.
        within: paths of layers that may change; default: all.
    """
    replaced = replace_clips(model) if clips == "replace" else []
    pairs = [
        pair
        for pair in pairs_of_layers(model, example)
        if within is None or {pair.first, pair.second} <= set(within)
    ]
    return pairs, equalise_pairs(model, pairs, rounds), replaced


@dataclass(frozen=True)
class Equalise(Step):
    """Folds batch norms and equalises the weights' ranges; needs no data.

    Worth its while before steps that have one scale for a whole weight. With one for each output channel it
    changes little.

    Attributes:
        clips: what happens to ReLU6, which stands in the way: ``"keep"`` leaves the pairs around it alone,
            ``"replace"`` makes it a ReLU, which changes the network where values exceed 6.
        rounds: passes over all pairs, at most.
    """

    clips: Literal["keep", "replace"] = "keep"
    rounds: Count = 20

    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Scales in place."""
        example = move(context.task.example, context.device)
        folded = fold_batch_norms(model.eval(), example)
        pairs, _, replaced = equalised(model, example, self.clips, self.rounds)
        context.record.update(
            folded_norms=len(folded),
            pairs=[[pair.first, pair.second] for pair in pairs],
            replaced_clips=len(replaced),
        )
        if not pairs:
            context.record.setdefault("notes", []).append(
                "equalise: no two layers stand one behind the other with only a ReLU or a pool between them"
            )
        return model
