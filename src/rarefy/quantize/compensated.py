# SPDX-License-Identifier: Apache-2.0
"""8-bit codes whose rounding errors make up for each other in what the layer computes.

Columns are rounded one after the other and the error is spread over those still to come, as in GPTQ
(Frantar, Ashkboos, Hoefler, Alistarh, 2022, arXiv 2210.17323, algorithm 1), here in the order in which
kernels multiply, so that pairs of codes stay within 16 bits: what the second of a pair may not be, the
columns behind it take. Zeros stay zeros.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rarefy.forms.pairs import LIMIT, like, rows_of, starts_of
from rarefy.loops.gather import Side, gather
from rarefy.loops.matrix import groups_of, kind_of, output_energy
from rarefy.loops.ridge import inverse_factor
from rarefy.loops.statistics import SecondMoment
from rarefy.quantize.int8_weights import Codes
from rarefy.select import Layer
from rarefy.task import Inputs

BLOCK = 64  # columns after which what lies far behind is brought up to date
WIDEST = 1536  # products of one sum beyond which second moments outweigh small networks
ROOM = 1 << 26  # entries of second moments that are held at a time


def compensated_codes(
    W: Tensor, H: Tensor, scale: Tensor, highest: int, starts: Sequence[int] = ()
) -> Tensor:
    """Codes of a weight, shaped like `W`.

    Args:
        W: (G, out, in) columns in the order in which they are multiplied.
        H: (G, in, in) second moments of what they are multiplied with.
        scale: (G, out) steps.
        highest: code.
        starts: where pairs begin that must stay within 16 bits; none if they need not.
    """
    U = inverse_factor(H, 0.01).float()
    W = W.float().movedim(-1, 0).clone(memory_format=torch.contiguous_format)  # (in, G, out)
    alive, codes, n = W != 0, torch.empty_like(W), len(W)
    dense = bool(alive.all())
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        errors = torch.empty_like(W[start:end])
        for i in range(start, end):
            q = torch.div(W[i], scale, out=codes[i]).round_().clamp_(-highest, highest)
            if not dense:
                q.mul_(alive[i])
            if any((i - 1 - first) % 2 == 0 and i > first for first in starts):
                before = codes[i - 1]
                q.clamp_(-LIMIT - before.clamp(max=0), LIMIT - before.clamp(min=0))
            error = torch.addcmul(W[i], q, scale, value=-1, out=errors[i - start])
            error /= U[:, i, i, None]
            W[i:end].addcmul_(U[:, i, i:end, None].movedim(1, 0), error, value=-1)
        W[end:] -= (U[:, start:end, end:].mT @ errors.movedim(1, 0)).movedim(1, 0)
    return codes.movedim(0, -1)


def column_order(weight: Tensor) -> Tensor:
    """For the columns (places of the kernel, inputs) their numbers in (inputs, places of the kernel)."""
    numbers = torch.arange(weight[0].numel()).view(weight.shape[1:])
    return numbers.movedim(0, -1).flatten() if weight.dim() > 2 else numbers


@torch.no_grad()
def compensate(layer: Layer, found: Codes, H: Tensor, paired: bool) -> Codes:
    """The codes of a layer anew, if that brings its results nearer to those of the unrounded weight.

    Args:
        layer: convolution or linear layer.
        found: nearest codes; their scale is kept.
        H: (in, in) or (groups, in, in) second moments of the rows of its matrix product.
        paired: whether pairs must stay within 16 bits.
    """
    w, G = layer.weight.detach().float(), groups_of(layer.module)
    if w.dim() > 2:
        w, codes = w.movedim(1, -1).flatten(1), found.codes.movedim(1, -1).flatten(1)
    else:
        codes = found.codes
    order = column_order(layer.weight)
    H = (H if H.dim() == 3 else H.unsqueeze(0))[:, order][:, :, order]
    W, scale = w.unflatten(0, (G, -1)), found.scale.view(G, -1)
    safe = paired and rows_of(layer.weight, 0, G) is not None
    starts = starts_of(layer.weight) if safe else ()
    tried = compensated_codes(W, H, scale, 2 ** (found.bits - 1) - 1, starts)
    s = scale.unsqueeze(-1)
    near = codes.float().unflatten(0, (G, -1))
    if output_energy(tried * s - W, H) >= output_energy(near * s - W, H):
        return found
    flat = tried.flatten(0, 1)
    if layer.weight.dim() > 2:
        flat = like(flat, layer.weight)
    return replace(found, codes=flat.view(layer.weight.shape).to(torch.int8))


def eligible(layer: Layer) -> bool:
    """Whether a layer's sums are of a kind and size that second moments can be had of."""
    few = layer.weight[0].numel() <= WIDEST
    return kind_of(layer.module) in ("linear", "conv") and few and layer.tensor == "weight"


def moments_of_layers(
    model: Any, layers: Iterable[Layer], batches: Sequence[Inputs]
) -> Iterator[tuple[Layer, SecondMoment]]:
    """Second moments of what each layer multiplies, for as many layers at a time as there is room for.

    Layers that never run are left out.
    """
    waiting: list[Layer] = []
    held = 0
    for layer in [*layers, None]:
        size = 0
        if layer is not None:
            size = layer.weight[0].numel() ** 2 * groups_of(layer.module)
        if waiting and (layer is None or held + size > ROOM):
            wanted: dict[tuple[str, Side], SecondMoment] = {
                (x.name, "rows"): SecondMoment(torch.float32) for x in waiting
            }
            gather(model, batches, wanted)
            for x in waiting:
                found = wanted.pop((x.name, "rows"))
                if found.count:
                    yield x, found
            waiting, held = [], 0
        if layer is not None:
            waiting, held = [*waiting, layer], held + size
