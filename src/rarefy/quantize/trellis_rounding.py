# SPDX-License-Identifier: Apache-2.0
"""Rounding weights to a trellis so that error and bits together are smallest, by the Viterbi algorithm.

Two quantisers take turns along a row (see `rarefy.store.trellis`); which index a weight takes decides what
those after it can reach. Every state keeps its best way so far, with what its own rounding leaves for the
weights to come (as in `rarefy.quantize.priced_rounding`; survivors that carry their own past are
per-survivor processing: Raheli, Polydoros, Tzou, 1995). At the end of a block one way remains.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rarefy.quantize.priced_rounding import LARGEST, Sweep
from rarefy.store.trellis import NEXT

BLOCK = 32
STATES = len(NEXT)
REACH = 2.0 * LARGEST - 4

FINER = 0.56
"""The trellis' step beside that of rounding to a grid: two quantisers of twice the step, 1 dB better."""

# For every state the two (parity, state) that lead to it, each as parity * STATES + state.
_BEFORE = [
    [p * STATES + s for s in range(STATES) for p in range(2) if NEXT[s, p] == t]
    for t in range(STATES)
]
# The smallest magnitude of every (parity, state); from there on they are 4 apart. Even multiples of the step
# are those of states 0 and 1. Zero is among the odd multiples too.
_FIRST = [[0, 0, 3, 3], [2, 2, 1, 1]]
_TO_ZERO = 1.5


class Step(NamedTuple):
    """One column of a block, for every state that it may lead to, (S, G, r).

    Attributes:
        before: the state that the best way comes from.
        value: what the column is rounded to, in steps.
        error: what that leaves, over the factor's diagonal.
    """

    before: Tensor
    value: Tensor
    error: Tensor


def cheapest(x: Tensor, weight: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
    """Cost and magnitude of the cheaper of the nearest value and the one below it, by parity: (2, S, G, r).

    Args:
        x: (S, G, r) magnitudes in steps.
        weight: (G, r) what a squared error of one step costs.
        price: of every magnitude of an index.
    """
    first = torch.tensor(_FIRST, dtype=x.dtype, device=x.device).view(2, STATES, 1, 1)
    near = ((x.clamp(max=REACH) - first) / 4).round_().clamp_(min=0).mul_(4).add_(first)
    near[0, STATES // 2 :].masked_fill_(x[STATES // 2 :] < _TO_ZERO, 0)
    lower = near - 4
    lower[0].clamp_(min=0)
    lower[1] = torch.where(lower[1] < 0, near[1], lower[1])
    both = torch.stack([near, lower])
    costs = (x - both).square_().mul_(weight).add_(price[(both / 2).ceil_().long()])
    better = costs[1] < costs[0]
    return torch.where(better, costs[1], costs[0]), torch.where(better, lower, near)


@torch.no_grad()
def trellis_codes(
    W: Tensor, sweep: Sweep, step: float, slope: float, bits: Tensor
) -> tuple[Tensor, Tensor]:
    """Integers n with W ~ step · n that lie along the trellis, and their indices, int32 (G, r, n).

    Args:
        W: (G, r, n), columns in the order in which they are stored.
        sweep: of the layer, its order that of the columns.
        step: Δ.
        slope: λ, what a bit costs in terms of g · e H eᵀ.
        bits: price of every index from -LARGEST to LARGEST, the same for both signs.
    """
    rest = (W.float() / step).movedim(-1, 0).clone(memory_format=torch.contiguous_format)
    U, gain, price = sweep.upper.float(), sweep.gain.float() * step**2, slope * bits[LARGEST:]
    values, n = torch.empty_like(rest), len(rest)
    state = torch.zeros(rest.shape[1:], dtype=torch.long, device=W.device)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        cost = torch.full((STATES, *state.shape), torch.inf, device=W.device)
        cost.scatter_(0, state.unsqueeze(0), 0.0)
        x = rest[start:stop].unsqueeze(1).expand(-1, STATES, -1, -1)
        steps = []
        for j in range(start, stop):
            cost, found = advanced(cost, x[0], U[:, j, j].unsqueeze(1), gain, price)
            steps.append(found)
            going = found.before.expand(len(x) - 1, *cost.shape)
            x = x[1:].gather(1, going)
            x.addcmul_(U[:, j, j + 1 : stop].mT[:, None, :, None], found.error, value=-1)
        state = cost.argmin(0)
        values[start:stop], errors = followed(steps, state)
        rest[stop:] -= (U[:, start:stop, stop:].mT @ errors.movedim(1, 0)).movedim(1, 0)
    values = values.movedim(0, -1).to(torch.int32)
    return values, (values + (values > 0)) >> 1


def advanced(
    cost: Tensor, x: Tensor, d: Tensor, gain: Tensor, price: Tensor
) -> tuple[Tensor, Step]:
    """Every state's best way after one more column.

    Args:
        cost: (S, G, r) of the ways so far.
        x: (S, G, r) what each of them has to round, in steps.
        d: (G, 1) the factor's diagonal.
        gain: (G, r) what a squared error of one step costs where d is 1.
        price: see `cheapest`.
    """
    found, sizes = cheapest(x.abs(), gain / d**2, price)
    pairs = torch.tensor(_BEFORE, device=x.device)
    totals = (cost + found).flatten(0, 1)[pairs]  # (S, 2, G, r)
    second = totals[:, 1] < totals[:, 0]
    chosen = torch.where(second, pairs[:, 1, None, None], pairs[:, 0, None, None])
    before = chosen % STATES
    seen = x.gather(0, before)
    value = sizes.flatten(0, 1).gather(0, chosen).copysign(seen)
    return torch.where(second, totals[:, 1], totals[:, 0]), Step(before, value, (seen - value) / d)


def followed(steps: list[Step], state: Tensor) -> tuple[Tensor, Tensor]:
    """Values and errors, (columns, G, r) each, of the way that ends in a state (G, r)."""
    values, errors, at = [], [], state.unsqueeze(0)
    for step in reversed(steps):
        values.append(step.value.gather(0, at))
        errors.append(step.error.gather(0, at))
        at = step.before.gather(0, at)
    return torch.cat(values[::-1]), torch.cat(errors[::-1])
