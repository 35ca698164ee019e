# SPDX-License-Identifier: Apache-2.0
"""Tucker, CP and tensor trains: exact at full rank, within their bounds below, and as layers."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.factorize.canonical import cp
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.factorize import Factorize
from rarefy.factorize.tensor_train import TensorTrainMatrix, near_equal, tt_svd
from rarefy.factorize.tucker import Tucker, tucker2
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def draws(*size: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=draw, dtype=torch.float64)


def dropped(M: Tensor, k: int) -> float:
    return float(torch.linalg.svdvals(M)[k:].square().sum())


@pytest.mark.parametrize("ranks", [(2, 3), (5, 4), (6, 8)])
def test_tucker_keeps_its_bound_and_sweeps_only_help(ranks: tuple[int, int]) -> None:
    W = draws(8, 6, 3, 3)
    bound = dropped(W.transpose(0, 1).flatten(1), ranks[0]) + dropped(W.flatten(1), ranks[1])
    made = Tucker(W.unsqueeze(0), sweeps=30)
    error = float((made.dense(ranks, made.weights(ranks)) - W).square().sum())
    assert error <= bound + 1e-9
    start = tuple(d.leading(k) for d, k in zip(made.modes, ranks, strict=True))
    cores = [tucker2(W.flatten(2).unsqueeze(0), start, n)[2] for n in (0, 1, 5)]  # type: ignore[arg-type]
    kept = [float(core.square().sum()) for core in cores]
    assert kept[0] <= kept[1] + 1e-9 <= kept[2] + 2e-9
    assert float(W.square().sum()) - kept[2] >= error - 1e-6


def test_tensor_trains_keep_their_bound() -> None:
    X = draws(1, 5, 3, 4, 6)
    for ranks in ((2, 3, 2), (5, 8, 4), (5, 15, 6)):
        cores = tt_svd(X, ranks)
        near = torch.einsum("bxir,brjs,bskt,btly->ijkl", *cores)
        unfolded = (X[0].reshape(5, -1), X[0].reshape(15, -1), X[0].reshape(60, -1))
        bound = sum(dropped(M, r) for M, r in zip(unfolded, ranks, strict=True))
        error = float((near - X[0]).square().sum())
        assert error <= bound + 1e-9
        assert bound > 0 or error < 1e-20


def test_a_train_of_a_matrix_stores_what_novikov_says() -> None:
    assert near_equal(784, 2) == (28, 28)
    assert near_equal(300, 3) == (5, 6, 10)
    W = draws(1, 300, 784)
    made = TensorTrainMatrix(W)
    m, n = made.folds
    ranks = (4, 3)
    count = m[0] * n[0] * 4 + 4 * m[1] * n[1] * 3 + 3 * m[2] * n[2]
    assert sum(p.parameters for p in made.pieces(ranks)) == count
    layer = nn.Linear(784, 300).double()
    chain = made.build(layer, ranks, made.weights(ranks), layer.bias)
    x = draws(3, 784, seed=1)
    wanted = x @ made.dense(ranks, made.weights(ranks))[0].T + layer.bias
    torch.testing.assert_close(chain(x), wanted)
    torch.testing.assert_close(made.dense(made.full, made.weights(made.full)), W)


def test_cp_errors_never_rise_and_true_ranks_are_found() -> None:
    factors = [draws(n, 4, seed=n) for n in (9, 7, 3)]
    X = torch.einsum("ar,br,cr->abc", *factors).unsqueeze(0)
    found, errors = cp(X, 4, 300, seed=0)
    assert errors[-1] <= 1e-6 * float(X.square().sum())
    _, noisy = cp(draws(2, 9, 7, 3, 3), 5, 60, seed=0)
    for trace in (errors, noisy):
        assert all(b <= a + 1e-9 * float(X.square().sum()) for a, b in itertools.pairwise(trace))
    near = torch.einsum("zar,zbr,zcr->zabc", *found)
    assert float((near - X).square().sum()) == pytest.approx(errors[-1], abs=1e-6)


def test_variational_bayes_finds_the_planted_tucker_ranks() -> None:
    core = draws(5, 3, 3, 3, seed=1)
    W = torch.einsum("srij,os,cr->ocij", core, draws(40, 5, seed=2), draws(30, 3, seed=3))
    layer = nn.Conv2d(30, 40, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(W + 0.05 * W.std() * draws(*W.shape, seed=4))
    model = nn.Sequential(layer)
    x = torch.randn(2, 30, 8, 8)
    context = Context(Task("toy", x, labelled=False), model, torch.device("cpu"))
    step = Factorize(decomposition="tucker", allocation="vbmf")
    small, _ = apply_step(step, copy.deepcopy(model), context)
    assert context.record["layers"][0]["ranks"] == [3, 5]
    with torch.no_grad():
        assert float((small(x) - model(x)).norm() / model(x).norm()) < 0.06


@pytest.mark.parametrize("name", ["tucker", "cp", "tensor-train"])
def test_each_serves_a_trained_network(name: str, digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    context = Context(task, model, torch.device("cpu"))
    step = Factorize(
        decomposition=name, allocation="greedy", budget="macs=0.5", repair="least-squares"
    )  # type: ignore[arg-type]
    small, _ = apply_step(step, copy.deepcopy(model), context)
    assert macs(small, task.example) <= 0.5 * macs(model, task.example)
    assert evaluate(small, task).value >= evaluate(model, task).value - 0.03
    assert name in {row["decomposition"] for row in context.record["layers"]}


def test_the_recipe_runs(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    current = copy.deepcopy(model)
    for number, step in enumerate(load_recipe("tensor-decomp").steps):
        context = Context(task, model, torch.device("cpu"), number)
        current, _ = apply_step(step, current, context)
    assert parameters(current) < parameters(model)
    assert evaluate(current, task).value >= evaluate(model, task).value - 0.03
    assert set(DECOMPOSITIONS) >= {"tucker", "cp", "tensor-train"}
