# SPDX-License-Identifier: Apache-2.0
"""Where a trained network is larger than it needs to be: weights, units, ranks and blocks.

Near-zero weights ask for pruning, dead and duplicate units for narrower layers, low effective ranks for
factors (Denil, Shakibi, Dinh, Ranzato, de Freitas: Predicting Parameters in Deep Learning, 2013,
arXiv 1306.0543), blocks that hardly turn their input for fewer blocks (Men et al.: ShortGPT, 2024,
arXiv 2403.03853, equation 1). Nothing is changed here; `suggestions` says what may be tried.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.loops.gather import gather
from rarefy.loops.matrix import kind_of, matrix_of
from rarefy.loops.modes import device_of, evaluating
from rarefy.loops.statistics import Covariance, Range, Statistic
from rarefy.select import Layer
from rarefy.task import Inputs, call, move


@dataclass(frozen=True)
class LayerRedundancy:
    """What a layer could do without.

    Attributes:
        name: of the layer.
        shape: (out, in) of its matrix; of all groups together.
        near_zero: share of weights below a hundredth of the layer's largest.
        rank: directions that hold 99 % of the matrix' energy; of all groups together.
        dead_units: outputs that never vary: on the data, or without data those whose weights are all zero.
        dead_inputs: inputs that never vary on the data.
        duplicates: (i, j, correlation) of units that say the same, each later unit once.
    """

    name: str
    shape: tuple[int, int]
    near_zero: float
    rank: int
    dead_units: tuple[int, ...]
    dead_inputs: tuple[int, ...]
    duplicates: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Redundancy:
    """The analysis of a network.

    Attributes:
        layers: one entry a layer, in order.
        blocks: path of a module that keeps its input's shape → 1 - cosine of input and output.
    """

    layers: tuple[LayerRedundancy, ...]
    blocks: dict[str, float]


def near_zero_share(w: Tensor, fraction: float = 0.01) -> float:
    """The share of weights below `fraction` of the largest magnitude; 1 for a layer of zeros."""
    size = w.detach().abs()
    return float((size <= fraction * size.max()).double().mean())


def effective_rank(matrix: Tensor, energy: float = 0.99) -> int:
    """The least k with σ_1² + … + σ_k² ≥ energy · Σ σ²; 0 for a matrix of zeros.

    Args:
        matrix: (m, n), or (groups, m, n) whose ranks add up.
    """
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    upto = squares.cumsum(-1)
    short = (upto < energy * upto[..., -1:] * (1 - 1e-12)).sum(-1) + 1
    return int(torch.where(upto[..., -1] > 0, short, 0).sum())


def correlations(covariance: Tensor) -> Tensor:
    """(units, units) correlations; 0 with units that do not vary."""
    spread = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(spread > 0, 1 / spread, torch.zeros_like(spread))
    return covariance * scale.unsqueeze(0) * scale.unsqueeze(1)


def similarities(matrix: Tensor, bias: Tensor | None) -> Tensor:
    """(units, units) cosines between units' weights, bias included: 1 for units that compute the same."""
    rows = matrix if bias is None else torch.cat([matrix, bias.detach().unsqueeze(1)], 1)
    unit = F.normalize(rows.double(), dim=1)
    return unit @ unit.mT


def duplicate_pairs(likeness: Tensor, least: float = 0.99) -> tuple[tuple[int, int, float], ...]:
    """(i, j, likeness) with i < j and |likeness| ≥ `least`, for each j with the i most like it."""
    below = likeness.tril(-1)
    best = below.abs().max(1)
    return tuple(
        (int(best.indices[j]), j, float(below[j, best.indices[j]]))
        for j in range(1, len(likeness))
        if float(best.values[j]) >= least
    )


def analyse(
    model: nn.Module, layers: Sequence[Layer], batches: Iterable[Inputs] | None = None
) -> Redundancy:
    """Measures the redundancy of layers and, with data, of the blocks around them.

    Args:
        model: is not changed.
        layers: linear layers and convolutions; others are passed over.
        batches: inputs, iterated once or twice; without them units are compared by their weights.
    """
    able = [layer for layer in layers if kind_of(layer.module)]
    if batches is None:
        return Redundancy(tuple(by_weights(layer) for layer in able), {})
    held = list(batches)
    outputs = {layer: Covariance(unit_axis_of(layer)) for layer in able}
    inputs = {layer: Range(unit_axis_of(layer)) for layer in able}
    wanted: dict[Any, Statistic] = {(x.name, "output"): s for x, s in outputs.items()}
    wanted |= {(x.name, "input"): s for x, s in inputs.items()}
    gather(model, held, wanted)
    found = tuple(by_data(x, outputs[x], inputs[x]) for x in able if outputs[x].count)
    return Redundancy(found, block_influence(model, able, held))


def unit_axis_of(layer: Layer) -> int:
    """The axis of the units from the end: the last of a linear layer, before the space of others."""
    return -1 - len(getattr(layer.module, "kernel_size", ()))


def by_weights(layer: Layer) -> LayerRedundancy:
    """The redundancy that the weights alone show."""
    matrix = matrix_of(layer).flatten(0, -2)
    bias = layer.module._parameters.get("bias")
    dead = indices((matrix == 0).all(1))
    pairs = duplicate_pairs(similarities(matrix, bias))
    return entry(layer, dead, (), pairs)


def by_data(layer: Layer, outputs: Covariance, inputs: Range) -> LayerRedundancy:
    """The redundancy that the layer shows on data."""
    covariance = outputs.covariance()
    dead = indices(covariance.diagonal() <= (1e-12 * outputs.mean).square())  # rounding of a mean
    steady = indices(inputs.low == inputs.high)
    return entry(layer, dead, steady, duplicate_pairs(correlations(covariance)))


def entry(
    layer: Layer,
    dead: tuple[int, ...],
    steady: tuple[int, ...],
    pairs: tuple[tuple[int, int, float], ...],
) -> LayerRedundancy:
    """What is known about a layer."""
    matrix = matrix_of(layer)
    alive = tuple(pair for pair in pairs if not {pair[0], pair[1]} & set(dead))
    shape = (matrix.shape[:-1].numel(), matrix.shape[-1])
    share, rank = near_zero_share(layer.weight), effective_rank(matrix)
    return LayerRedundancy(layer.name, shape, share, rank, dead, steady, alive)


def indices(marked: Tensor) -> tuple[int, ...]:
    """Where a vector is True."""
    return tuple(int(i) for i in marked.nonzero().flatten())


@torch.no_grad()
def block_influence(
    model: nn.Module, layers: Sequence[Layer], batches: Iterable[Inputs]
) -> dict[str, float]:
    """1 - mean cosine between a block's input and output, for blocks whose output has the input's shape.

    A block is a module with children that holds one of the layers. Near 0 it hardly does anything.
    """
    wanted = {layer.module for layer in layers}
    cosines: dict[str, list[Tensor]] = {}
    entered: list[Tensor | None] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        entered.append(x.clone() if isinstance(x, Tensor) else None)  # blocks may work in place

    def after(name: str, output: Any) -> None:
        x = entered.pop()
        if x is not None and isinstance(output, Tensor) and x.shape == output.shape:
            cosine = F.cosine_similarity(x.flatten(1).double(), output.flatten(1).double())
            cosines.setdefault(name, []).append(cosine)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            inner = set(module.modules()) - {module}
            if name and module not in wanted and not wanted.isdisjoint(inner):
                stack.callback(module.register_forward_pre_hook(before).remove)
                hook = module.register_forward_hook(lambda _, __, y, name=name: after(name, y))
                stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        for batch in batches:
            call(model, move(batch, device_of(model)))
    return {name: float(1 - torch.cat(parts).mean()) for name, parts in cosines.items()}


def suggestions(found: Redundancy) -> list[str]:
    """What may be tried, one sentence each, layer by layer."""
    lines = []
    for x in found.layers:
        out, into = x.shape
        if x.near_zero >= 0.3:
            lines.append(f"{x.name}: {x.near_zero:.0%} of the weights are near zero; prune weights")
        if x.dead_units:
            lines.append(f"{x.name}: {len(x.dead_units)} of {out} units are dead; cut them")
        if x.dead_inputs:
            lines.append(f"{x.name}: {len(x.dead_inputs)} of {into} inputs never vary; fold them")
        if x.duplicates:
            lines.append(f"{x.name}: {len(x.duplicates)} units repeat others; merge them")
        if 0 < x.rank * (out + into) < out * into:
            lines.append(f"{x.name}: rank {x.rank} holds 99% of the energy; factorise")
    idle = [(name, v) for name, v in found.blocks.items() if v < 0.05]
    return [*lines, *(f"{name}: turns its input by {v:.3f} only; drop it" for name, v in idle)]
