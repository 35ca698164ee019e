# SPDX-License-Identifier: Apache-2.0
"""Tables: the step follows the harm, a price empties them, a rate is what the codes take."""

import pytest
import torch

from rarefy.quantize.priced_rounding import LARGEST, prices_of
from rarefy.quantize.priced_tables import round_table, table_codes, table_rate, table_step
from rarefy.quantize.slopes import slope_for, step_of

W = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))


def test_without_a_price_it_is_plain_rounding() -> None:
    assert torch.equal(table_codes(W, 1.0, 0.3, 0.0), (W / 0.3).round().int())


def test_the_trade_is_better_than_that_of_plain_rounding() -> None:
    def cost(codes: torch.Tensor) -> float:
        bits = float(prices_of(codes)[(codes + LARGEST).long()].sum())
        return float(((W - step * codes) ** 2).sum()) + slope * bits

    slope = 0.02
    step = table_step(1.0, slope)
    assert step**2 == pytest.approx(6 * slope / 0.6931471805599453)
    assert cost(table_codes(W, 1.0, step, slope)) < cost((W / step).round().int())


def test_a_rate_is_met_and_harm_halves_the_squared_step() -> None:
    rate = table_rate(W, 2.0)
    slope = slope_for({"w": rate}, 3.0 * W.numel())
    found, exponent = round_table(W, 2.0, 2.0**slope)
    codes = (found / step_of(exponent)).round().int()
    bits = float(prices_of(codes)[(codes + LARGEST).long()].sum())
    assert bits == pytest.approx(3.0 * W.numel(), rel=0.05)
    assert table_step(2.0, 1.0) ** 2 == pytest.approx(table_step(1.0, 1.0) ** 2 / 2)


def test_a_rate_passes_through_what_was_measured() -> None:
    rate = table_rate(W, 2.0)
    slope = slope_for({"w": rate}, 3.0 * W.numel())
    rate.correct(slope, 4.0 * W.numel())
    assert rate.bits(slope) == pytest.approx(4.0 * W.numel())
    assert slope_for({"w": rate}, 3.0 * W.numel()) > slope
