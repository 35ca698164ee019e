# SPDX-License-Identifier: Apache-2.0
"""Rates are met in the file, harm is less than that of plain rounding, one slope rules all layers."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rarefy.measure.quality import evaluate
from rarefy.quantize.priced_rounding import (
    LARGEST,
    prepare,
    priced_codes,
    prices_of,
    round_column,
    row_scales,
    step_for,
)
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.quantize.rounded_layers import stored_bits
from rarefy.quantize.row_gains import gradient_energy, grouped
from rarefy.select import select
from rarefy.step import Context
from rarefy.store.coding import encode_tensor
from rarefy.task import Task


def made(n: int = 24, rows: int = 16) -> tuple[Tensor, Tensor]:
    """A weight (1, rows, n) and second moments of correlated inputs (1, n, n)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return torch.randn(1, rows, n, generator=generator), (x.T @ x / 500).double().unsqueeze(0)


def harm(W: Tensor, codes: Tensor, step: float, H: Tensor) -> float:
    e = (W - step * codes).double()
    return float(((e @ H) * e).sum())


def test_the_factor_is_that_of_the_inverse() -> None:
    _, H = made()
    sweep = prepare(H, torch.ones(1, 16), damping=1e-9)
    order = sweep.order[0]
    inverse = torch.linalg.inv(H[0][order][:, order])
    U = sweep.upper[0]
    assert torch.allclose(U.T @ U, inverse, rtol=1e-4)
    assert torch.equal(U, U.triu())


def test_without_a_price_and_correlations_it_is_plain_rounding() -> None:
    W, _ = made()
    sweep = prepare(torch.eye(24).double().unsqueeze(0), torch.ones(1, 16))
    codes = priced_codes(W, sweep, 0.3, 0.0, torch.zeros(2 * LARGEST + 1))
    assert torch.equal(codes, (W / 0.3).round().int())


def test_making_up_for_errors_beats_plain_rounding() -> None:
    W, H = made()
    free = torch.zeros(2 * LARGEST + 1)
    codes = priced_codes(W, prepare(H, torch.ones(1, 16)), 0.5, 0.0, free)
    assert harm(W, codes, 0.5, H) < 0.5 * harm(W, (W / 0.5).round(), 0.5, H)


def test_a_column_takes_the_cheapest_of_its_neighbours() -> None:
    bits = prices_of(torch.tensor([0] * 90 + [1, -1, 2, -2, 3] * 2))
    x = torch.linspace(-3.4, 3.4, 41).view(1, -1)
    for slope in (0.0, 0.05, 0.5):
        found = round_column(x, torch.ones(1, 1), slope, bits)
        grid = torch.arange(-LARGEST, LARGEST + 1).view(-1, 1)
        best = ((x - grid) ** 2 + slope * bits.view(-1, 1)).amin(0)
        spent = ((x - found) ** 2 + slope * bits[(found + LARGEST).long()])[0]
        assert torch.allclose(spent, best, atol=0.02 + 0.3 * slope)
        assert (
            spent <= (x - x.round())[0] ** 2 + slope * bits[(x[0].round() + LARGEST).long()]
        ).all()


@pytest.mark.parametrize("curvature", [0.01, 1.0, 50.0])
def test_the_step_follows_the_slope(curvature: float) -> None:
    H = curvature * torch.eye(8).double().unsqueeze(0)
    sweep = prepare(H, torch.ones(1, 4), damping=1e-12)
    assert step_for(sweep, 0.1) == pytest.approx((0.6 / np.log(2) / curvature) ** 0.5, rel=1e-4)


def test_prices_are_code_lengths() -> None:
    codes = torch.tensor([0, 0, 0, 0, 1, -1, 1, -1])
    bits = prices_of(codes)
    assert float(torch.exp2(-bits).sum()) == pytest.approx(1, abs=1e-3)
    assert float(bits[LARGEST]) < float(bits[LARGEST + 1]) < float(bits[LARGEST + 9])
    assert torch.equal(bits, bits.flip(0))


def test_energy_of_a_linear_layer_is_that_of_its_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    x = torch.randn(4000, 3)
    found = gradient_energy(model, x.split(500), select(model), 0)["0"]
    assert torch.allclose(found.float(), x.square().mean(0).expand(4, 3), rtol=0.15)


@pytest.mark.parametrize("bits", [1.0, 2.5, 6.0])
def test_the_file_takes_what_was_asked_for(bits: float, digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    before = evaluate(model, task).value
    found = RateDistortion(bits=bits).apply(model, context)
    layers = select(found)
    spent = sum(stored_bits(layer) for layer in layers)
    spent += sum(8 * len(encode_tensor(x.module.bias.detach().numpy())) for x in layers)
    weights = sum(grouped(layer.weight).numel() for layer in layers)
    assert spent == pytest.approx(bits * weights, rel=0.05)
    assert context.record["bits"] == spent
    assert evaluate(found, task).value >= before - (0.03 if bits < 2 else 0.01)
    assert len(set(context.record["steps"].values())) > 1


class Looked(nn.Module):
    """Words are looked up, summed and judged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.head = nn.Embedding(300, 32), nn.Linear(32, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.table(words).sum(1))


def test_embeddings_are_rounded_where_they_are_asked_for() -> None:
    words = torch.randint(0, 300, (64, 9), generator=torch.Generator().manual_seed(0))
    batches = list(words.split(16))
    task = Task("words", batches[0], train=batches, labelled=False)
    context = Context(task, Looked(), torch.device("cpu"), 0, {})
    alone = RateDistortion(bits=3).apply(Looked(), context)
    assert torch.equal(alone.table.weight, Looked().table.weight)
    found = RateDistortion(bits=3, layers=("*", "type:Embedding")).apply(Looked(), context)
    table = found.table.weight.detach()
    codes = table / 2.0 ** context.record["steps"]["table"]
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert 8 * len(encode_tensor(table.numpy())) == pytest.approx(3 * table.numel(), rel=0.1)
    with torch.no_grad():
        exact, near = Looked()(words), found(words)
    assert float((exact - near).square().mean()) < 0.05 * float(exact.var())


def test_rows_that_matter_get_finer_steps_and_less_harm_in_the_same_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64, bias=False), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_(generator=generator)
        model[1].weight *= torch.logspace(-2, 1, 64)  # columns: what the rows before them count
    x = torch.randn(256, 40, generator=generator)
    task = Task("noise", x[:4], train=list(x.split(64)), labelled=False)
    harms, weights = [], 40 * 64 + 64 * 64
    for by_row in (False, True):
        context = Context(task, model, torch.device("cpu"), 0, {})
        step = RateDistortion(bits=3.0, by_row=by_row, fold=False)
        found = step.apply(copy.deepcopy(model), context)
        bits = sum(8 * len(encode_tensor(x.weight.detach().numpy())) for x in select(found))
        assert bits == pytest.approx(3.0 * weights, rel=0.1)
        with torch.no_grad():
            harm = float((model(x) - found(x)).square().mean())
        harms.append(harm * 4 ** (bits / weights))  # a bit more quarters the harm
    assert harms[1] < 0.7 * harms[0]


def test_rows_count_alike_after_scaling() -> None:
    _, H = made()
    gain = torch.logspace(-2, 2, 16).unsqueeze(0)
    sweep = prepare(H, gain)
    scale = row_scales(sweep)
    assert torch.equal(scale.log2(), scale.log2().round())
    even = gain * scale**2
    assert float(even.max() / even.min()) < 4.01
    assert step_for(sweep, 1.0) == pytest.approx(step_for(prepare(H, even), 1.0), rel=0.1)
