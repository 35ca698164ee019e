# SPDX-License-Identifier: Apache-2.0
"""GPTQ: equal to optimal brain surgery in the same order, never worse than nearest, faithful on file."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.errors import ModelError
from rarefy.forms.affine import Quantised
from rarefy.forms.grid import Grid
from rarefy.forms.shadow import find
from rarefy.loops.matrix import output_energy
from rarefy.loops.ridge import inverse_factor
from rarefy.measure.quality import evaluate
from rarefy.quantize.gptq import GPTQ, gptq_codes
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.step import Context, Step
from rarefy.task import Task


def problem(out: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and second moments of inputs that hang together."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(out, n, generator=draw, dtype=torch.float64)
    mix = torch.randn(n, n, generator=draw, dtype=torch.float64)
    X = torch.randn(200, n, generator=draw, dtype=torch.float64) @ (mix + 2 * torch.eye(n))
    return W, X.mT @ X / 200


def surgery(w: Tensor, H: Tensor, step: float, grid: Grid, damping: float) -> list[int]:
    """Optimal brain surgery of one row in order: round a weight, mend the others, strike it out."""
    n, w = len(w), w.clone()
    inverse = torch.linalg.inv(
        H + damping * H.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    )
    codes = []
    for i in range(n):
        q = (w[i] / step).round().clamp(grid.low, grid.high)
        codes.append(int(q))
        w = w - (w[i] - q * step) / inverse[i, i] * inverse[:, i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1.0  # it is out: nothing reads this any more
    return codes


@pytest.mark.parametrize("bits", [2, 4])
def test_a_row_is_what_surgery_in_order_gives(bits: int) -> None:
    W, H = problem(3, 24)
    grid, steps = Grid(bits), torch.tensor([0.3, 0.5, 0.7])
    codes = gptq_codes(W, H, steps, grid)
    for row, step, found in zip(W, steps.tolist(), codes, strict=True):
        assert found.int().tolist() == surgery(row, H, step, grid, 0.01)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    W, H = problem(8, 40)
    steps, grid = torch.full((8,), 0.4), Grid(4)
    whole = gptq_codes(W, H, steps, grid)
    monkeypatch.setattr("rarefy.quantize.gptq.BLOCK", 7)
    assert torch.equal(gptq_codes(W, H, steps, grid), whole)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_are_nearer_than_with_nearest_rounding(bits: int) -> None:
    W, H = problem(16, 48, seed=bits)
    grid = Grid(bits)
    steps = W.abs().amax(1) / grid.high
    s = steps.unsqueeze(1)
    ours = gptq_codes(W, H, steps, grid) * s
    nearest = (W / s).round().clamp(grid.low, grid.high) * s
    assert float(output_energy(ours - W, H)) < 0.7 * float(output_energy(nearest - W, H))


def test_independent_inputs_leave_nearest_rounding() -> None:
    W, _ = problem(4, 10)
    H = torch.diag(torch.rand(10, dtype=torch.float64) + 0.5)
    steps = torch.full((4,), 0.2)
    assert torch.equal(gptq_codes(W, H, steps, Grid(4)), (W / 0.2).round().clamp(-8, 7))


def test_groups_are_rounded_each_by_its_own_moments() -> None:
    parts = [problem(4, 12, seed) for seed in (1, 2)]
    W, H = (torch.stack(x) for x in zip(*parts, strict=True))
    steps = torch.full((2, 4), 0.3)
    together = gptq_codes(W, H, steps, Grid(3))
    for k, (w, h) in enumerate(parts):
        assert torch.equal(together[k], gptq_codes(w, h, steps[k], Grid(3)))


def test_dead_inputs_and_broken_moments() -> None:
    _, H = problem(2, 6)
    H[2], H[:, 2] = 0, 0
    U = inverse_factor(H, 0.01)
    assert bool(torch.isfinite(U).all())
    H[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite on calibration data"):
        inverse_factor(H, 0.01)


def test_three_bits_keep_the_accuracy(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, copy.deepcopy(model), torch.device("cpu"))
    found = GPTQ(bits=3).apply(copy.deepcopy(model), context)
    assert evaluate(found, task).value >= evaluate(model, task).value - 0.015
    for nearest, kept in context.record["output_errors"].values():
        assert kept <= nearest
    assert sum(k for _, k in context.record["output_errors"].values()) < 0.8 * sum(
        n for n, _ in context.record["output_errors"].values()
    )
    codes = found.fc1.parametrizations.weight.original
    assert find(found.fc1, Quantised).bits == 3
    assert set(codes.unique().tolist()) <= set(range(-4, 4))


def test_grouped_transposed_convolutions_share_their_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Conv2d(6, 4, 3, groups=2)
    ).eval()
    x = torch.randn(16, 4, 6, 6)
    task = Task("random", x[:2], calibration=[x], labelled=False)
    exact = copy.deepcopy(model)
    found = GPTQ(bits=6).apply(model, Context(task, exact, torch.device("cpu")))
    with torch.no_grad():
        y, z = found(x), exact(x)
    assert float((y - z).norm() / z.norm()) <= 0.06


@pytest.mark.parametrize(
    "step", [GPTQ(layers="type:GRU"), RateDistortion(layers=("*", "type:GRU"))]
)
def test_layers_that_were_asked_for_are_not_passed_over(step: Step) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GRU(6, 5))
    task = Task("rows", torch.ones(2, 4), calibration=[torch.ones(2, 4)], labelled=False)
    with pytest.raises(ModelError, match=r"'1' \(GRU, tensor 'weight_ih_l0'\) has no matrix form"):
        step.apply(model, Context(task, model, torch.device("cpu"), 0, {}))


def test_an_embedding_is_not_passed_over() -> None:
    model = nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 5))
    task = Task(
        "words", torch.ones(2, 3).long(), calibration=[torch.ones(2, 3).long()], labelled=False
    )
    context = Context(task, model, torch.device("cpu"), 0, {})
    GPTQ().apply(model, context)
    assert not parametrize.is_parametrized(model[0])
    with pytest.raises(ModelError, match=r"'0' \(Embedding, tensor 'weight'\) has no matrix form"):
        GPTQ(layers=("*", "type:Embedding")).apply(model, context)
