# SPDX-License-Identifier: Apache-2.0
"""Rounding weights to a trellis so that error and bits together are smallest, by the Viterbi algorithm.

Two quantisers take turns along a row (see `rarefy.store.trellis`); which index a weight takes decides what
those after it can reach. Every state keeps its best way so far, with what its own rounding leaves for the
weights to come (as in `rarefy.quantize.priced_rounding`; survivors that carry their own past are
per-survivor processing: Raheli, Polydoros, Tzou, 1995). At the end of a block one way remains.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rarefy.quantize.priced_rounding import LARGEST, Sweep
from rarefy.store.trellis import NEXT

BLOCK = 32
STATES = len(NEXT)

FINER = 0.56
"""The trellis' step beside that of rounding to a grid: two quantisers of twice the step, 1 dB better."""

# For every state the two (state, parity) that lead to it.
_BEFORE = [[(s, p) for s in range(STATES) for p in range(2) if NEXT[s, p] == t] for t in range(4)]


@dataclass
class Ways:
    """The best way to each state, first axis.

    Attributes:
        cost: (S, G, r).
        rest: (S, G, r, b) what is to be rounded.
        indices, errors: (S, G, r, b) so far.
    """

    cost: Tensor
    rest: Tensor
    indices: Tensor
    errors: Tensor

    def taken(self, before: Tensor, cost: Tensor) -> "Ways":
        """The ways that go on from these states, (S, G, r)."""
        wide = before.unsqueeze(-1).expand_as(self.rest)
        return Ways(cost, *(t.gather(0, wide) for t in (self.rest, self.indices, self.errors)))


def nearest_indices(x: Tensor, odd: bool, parity: int) -> tuple[Tensor, Tensor]:
    """The nearest value of one quantiser whose index has this parity, and the index; floats like x.

    Args:
        x: values in steps.
        odd: whether the quantiser has the odd multiples and zero, or the even ones.
    """
    if not odd:
        value = ((x - 2 * parity) / 4).round() * 4 + 2 * parity
        return value, value / 2
    first = 1 if parity else 3
    size = (((x.abs() - first) / 4).round().clamp(min=0) * 4 + first) * torch.where(x < 0, -1, 1)
    if not parity:
        size = torch.where(x.abs() < 1.5, torch.zeros_like(x), size)
    return size, (size + size.sign()) / 2


def cheapest(
    x: Tensor, weight: Tensor, slope: float, bits: Tensor, odd: bool, parity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, value and index of the cheapest of the nearest value, the one below it and zero."""
    reach = 2.0 * LARGEST - 4
    value, index = nearest_indices(x.clamp(-reach, reach), odd, parity)
    cost = weight * (x - value) ** 2 + slope * bits[(index + LARGEST).long()]
    lower = value - 4 * value.sign()
    lower = torch.where(lower * value < 0, value if parity else torch.zeros_like(value), lower)
    below = (lower + lower.sign()) / 2 if odd else lower / 2
    other = weight * (x - lower) ** 2 + slope * bits[(below + LARGEST).long()]
    better = other < cost
    return (
        torch.where(better, other, cost),
        torch.where(better, lower, value),
        torch.where(better, below, index),
    )


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
        bits: price of every index from -LARGEST to LARGEST.
    """
    rest, U, gain = W.float().clone(), sweep.upper.float(), sweep.gain.float()
    indices, values = torch.empty_like(rest), torch.empty_like(rest)
    state = torch.zeros(rest.shape[:2], dtype=torch.long, device=W.device)
    n = rest.shape[2]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        ways = begun(rest[:, :, start:stop], state)
        for j in range(start, stop):
            d = U[:, j, j].unsqueeze(1)
            ways = advanced(ways, j - start, step, gain * (step / d) ** 2, slope, bits)
            error = ways.errors[..., j - start] / d
            ways.errors[..., j - start] = error
            ways.rest[..., j - start + 1 :] -= error.unsqueeze(-1) * U[
                :, j, j + 1 : stop
            ].unsqueeze(1)
        state = ways.cost.argmin(0)
        best = state[None, ..., None].expand(1, *ways.rest.shape[1:])
        k, errors = (t.gather(0, best)[0] for t in (ways.indices, ways.errors))
        indices[:, :, start:stop] = k
        left = (errors * U[:, range(start, stop), range(start, stop)].unsqueeze(1)) / step
        x = ways.rest.gather(0, best)[0] / step
        values[:, :, start:stop] = (x - left).round()
        rest[:, :, stop:] -= errors @ U[:, start:stop, stop:]
    return values.to(torch.int32), indices.to(torch.int32)


def begun(rest: Tensor, state: Tensor) -> Ways:
    """Ways that begin in one state for each row."""
    cost = torch.full((STATES, *state.shape), torch.inf, device=rest.device)
    cost.scatter_(0, state.unsqueeze(0), 0.0)
    wide = rest.expand(STATES, *rest.shape).clone()
    return Ways(cost, wide, torch.zeros_like(wide), torch.zeros_like(wide))


def advanced(
    ways: Ways, place: int, step: float, weight: Tensor, slope: float, bits: Tensor
) -> Ways:
    """Every state's best way after one more column; its error is what the value leaves."""
    x, half = ways.rest[..., place] / step, STATES // 2
    by_kind = {
        (odd, p): cheapest(x[half:] if odd else x[:half], weight, slope, bits, odd, p)
        for odd in (False, True)
        for p in range(2)
    }
    costs, before, index, value = [], [], [], []
    for pair in _BEFORE:
        ends = []
        for s, p in pair:
            cost, v, k = (t[s % half] for t in by_kind[s >= half, p])
            ends.append((ways.cost[s] + cost, v, k))
        better = ends[1][0] < ends[0][0]
        costs.append(torch.where(better, ends[1][0], ends[0][0]))
        before.append(torch.where(better, pair[1][0], pair[0][0]))
        value.append(torch.where(better, ends[1][1], ends[0][1]))
        index.append(torch.where(better, ends[1][2], ends[0][2]))
    found = ways.taken(torch.stack(before), torch.stack(costs))
    found.indices[..., place] = torch.stack(index)
    found.errors[..., place] = found.rest[..., place] - step * torch.stack(value)
    return found
