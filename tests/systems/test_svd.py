# SPDX-License-Identifier: Apache-2.0
"""SVD: closed forms, the break-even rank, the best fit of the outputs, and a network four times smaller."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.factorize import Factorize
from rarefy.factorize.sites import look
from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task
from rarefy.zoo.lenet import LeNet300


def skewed(rows: int, width: int, seed: int) -> Tensor:
    """Inputs whose directions have very different strengths, float64."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    mix = mix * torch.logspace(0, -2, width, dtype=torch.float64).unsqueeze(1)
    return torch.randn(rows, width, generator=draw, dtype=torch.float64) @ mix


def fitted(W: Tensor, k: int, outputs: Tensor | None = None) -> Tensor:
    moment = None if outputs is None else (outputs.T @ outputs / len(outputs)).unsqueeze(0)
    made = DECOMPOSITIONS["svd"](W.unsqueeze(0), moment)
    return made.dense((k,), made.weights((k,)))[0]


def alternated(X: Tensor, Y: Tensor, k: int, seed: int) -> float:
    """The least |Y - X A B| that alternating least squares finds from a random start."""
    draw = torch.Generator().manual_seed(seed)
    B = torch.randn(k, Y.shape[1], generator=draw, dtype=Y.dtype)
    for _ in range(400):
        A = torch.linalg.lstsq(X, Y).solution @ torch.linalg.pinv(B)
        B = torch.linalg.lstsq(X @ A, Y).solution
    return float((Y - X @ A @ B).norm())


@pytest.mark.parametrize("k", [1, 4, 9])
def test_outputs_are_fitted_as_well_as_can_be(k: int) -> None:
    torch.manual_seed(0)
    X, W = skewed(200, 14, 0), torch.randn(10, 14, dtype=torch.float64)
    Y = X @ W.T
    error = float((Y - X @ fitted(W, k, Y).T).norm())
    by_pca = float(torch.linalg.svdvals(Y)[k:].square().sum().sqrt())
    assert error == pytest.approx(by_pca, rel=1e-6)
    assert error <= min(alternated(X, Y, k, seed) for seed in range(3)) * (1 + 1e-6)
    assert error <= float((Y - X @ fitted(W, k).T).norm()) * (1 + 1e-9)


def test_it_is_worth_it_below_the_break_even_rank() -> None:
    model = nn.Sequential(nn.Linear(784, 300))
    (site,), _ = look(model, select(model), torch.randn(1, 784), "svd")
    made = site.decompose(None, 1, 0)
    limit = 300 * 784 / (300 + 784)
    assert limit == pytest.approx(216.97, abs=0.01)
    assert site.pays(made, (math.floor(limit),))
    assert not site.pays(made, (math.ceil(limit),))


def test_the_full_rank_is_the_layer_and_operations_fall() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(30, 20), torch.randn(7, 30)
    model = nn.Sequential(copy.deepcopy(layer))
    task = Task("toy", x[:1], calibration=[x], labelled=False)
    context = Context(task, model, torch.device("cpu"))
    small, _ = apply_step(Factorize(rank=5), copy.deepcopy(model), context)
    assert macs(small, x) == 5 * (30 + 20)
    assert parameters(small) == 5 * (30 + 20) + 20
    made = DECOMPOSITIONS["svd"](layer.weight.detach().unsqueeze(0))
    chain = made.build(layer, (20,), made.weights((20,)), layer.bias)
    torch.testing.assert_close(chain(x), layer(x), rtol=1e-5, atol=1e-5)


def test_lenet_300_100_becomes_four_times_smaller(digits_task: Task) -> None:
    torch.manual_seed(0)
    model = fit(LeNet300(pixels=64), digits_task, Training(epochs=12, rate=0.05), seed=0)
    before = evaluate(model, digits_task).value
    current = copy.deepcopy(model)
    for number, step in enumerate(load_recipe("svd").steps):
        context = Context(digits_task, model, torch.device("cpu"), number)
        current, _ = apply_step(step, current, context)
    assert parameters(current) <= 0.26 * parameters(model)
    assert evaluate(current, digits_task).value >= before - 0.02  # of 300 images


def test_activation_aware_beats_plain_on_a_real_network(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    x = torch.cat([x for x, _ in task.batches("test")])
    with torch.no_grad():
        wanted = model(x)

    def error(fit_to: str) -> float:
        step = Factorize(rank=0.3, fit=fit_to, layers=("conv2", "fc1"), examples=400)  # type: ignore[arg-type]
        context = Context(task, model, torch.device("cpu"))
        small, _ = apply_step(step, copy.deepcopy(model), context)
        with torch.no_grad():
            return float((small(x) - wanted).norm() / wanted.norm())

    assert error("outputs") < error("weights")
