# SPDX-License-Identifier: Apache-2.0
"""Embeddings rounded so that harm and bits together are smallest; no entry can make up for another.

Minimises h · |W - Δ q|² + λ · bits(q) with one h for the table: which rows will be looked up is not known
from a few examples, so all count alike.
"""

import torch
from torch import Tensor

from rarefy.quantize.priced_rounding import LARGEST, prices_of, round_column
from rarefy.quantize.slopes import Rate, exponent_of, step_of, tried_rate

SAMPLE = 2048
"""Rows on which rates are tried."""

_ROWS = 4096


def table_harm(energy: Tensor) -> float:
    """h: the mean over all entries of the squared gradients (rows, columns); above zero."""
    return max(float(energy.double().mean()), 1e-30)


def table_step(harm: float, slope: float) -> float:
    """The step at which a bit more or less is worth `slope`: Δ² = 6 λ / (ln 2 · h)."""
    return (6 * slope / 0.6931471805599453 / harm) ** 0.5


@torch.no_grad()
def table_codes(W: Tensor, harm: float, step: float, slope: float) -> Tensor:
    """Integers q with W ~ step · q, int32 (rows, columns), under prices that follow from themselves."""
    codes = (W / step).round().clamp(-LARGEST, LARGEST).to(torch.int32)
    weight = torch.tensor(harm * step**2, device=W.device)
    for _ in range(2):
        bits = prices_of(codes).to(W.device)
        codes = torch.cat([
            round_column(rows / step, weight, slope, bits).to(torch.int32)
            for rows in W.split(_ROWS)
        ])  # fmt: skip
    return codes


def table_rate(W: Tensor, harm: float) -> Rate:
    """The bits that a table takes at several slopes."""
    some = W[:: max(1, len(W) // SAMPLE)]
    return tried_rate(
        W,
        some.numel(),
        table_step(harm, 1.0),
        lambda *tried: torch.stack(
            [
                table_codes(some, harm, *pair)
                for pair in zip(*(x.tolist() for x in tried), strict=True)
            ]
        ),
    )


def round_table(W: Tensor, harm: float, slope: float) -> tuple[Tensor, float]:
    """The rounded table and the exponent of its step."""
    wanted = max(table_step(harm, slope), float(W.abs().max()) / LARGEST, 1e-30)
    exponent = exponent_of(wanted)
    step = step_of(exponent)
    return (step * table_codes(W, harm, step, slope)).to(W.dtype), exponent
