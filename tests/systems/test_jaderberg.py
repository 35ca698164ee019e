# SPDX-License-Identifier: Apache-2.0
"""Jaderberg's two schemes: exact on separable filters, never rising errors, the closed form at the end."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.factorize.alternating import alternate_on_outputs, alternate_on_weights
from rarefy.factorize.decompositions import DECOMPOSITIONS
from rarefy.factorize.factorize import Factorize
from rarefy.factorize.kernel import shape_of
from rarefy.factorize.moments import window_rows
from rarefy.factorize.split import as_matrix
from rarefy.measure.counts import macs
from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def draws(*size: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=draw, dtype=torch.float64)


def falls(errors: list[float]) -> bool:
    return all(b <= a * (1 + 1e-9) + 1e-12 for a, b in itertools.pairwise(errors))


def test_scheme_one_recovers_separable_filters_with_one_basis_filter() -> None:
    v, h, a = draws(4, 3, seed=1), draws(4, 3, seed=2), draws(7, 4, seed=3)
    kernel = torch.einsum("oc,ci,cj->ocij", a, v, h).unsqueeze(0)
    made = DECOMPOSITIONS["separable"](kernel, sweeps=50)
    weights = made.weights((1,))
    torch.testing.assert_close(made.dense((1,), weights), kernel, rtol=1e-6, atol=1e-6)
    assert [tuple(w.shape) for w in weights] == [(4, 1, 3, 1), (4, 1, 1, 3), (7, 4, 1, 1)]


@pytest.mark.parametrize("K", [1, 3, 6])
def test_scheme_two_falls_to_the_closed_form(K: int) -> None:
    kernel = draws(1, 6, 4, 3, 3)
    M = as_matrix(kernel, 1)
    closed = DECOMPOSITIONS["spatial"](kernel)
    best = float((closed.dense((K,), closed.weights((K,))) - kernel).square().sum())
    _, _, errors = alternate_on_weights(M, draws(1, M.shape[1], K, seed=5), 3000)
    assert falls(errors)
    assert all(error >= best * (1 - 1e-9) for error in errors)
    assert errors[-1] == pytest.approx(best, rel=1e-4)


def test_outputs_are_reconstructed_better_than_by_the_weights() -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw, dtype=torch.float64))
    x = draws(3, 4, 9, 9).cumsum(-1).cumsum(-2) / 9  # smooth, as images are
    kernel = layer.weight.detach().unsqueeze(0)
    rows = window_rows(layer, x, shape_of(kernel), (0, 1))
    moment = rows.mT @ rows / rows.shape[1]
    fits = {
        "weights": DECOMPOSITIONS["spatial"](kernel),
        "outputs": DECOMPOSITIONS["spatial-alternating"](kernel, moment, sweeps=40),
    }
    errors = {}
    for name, made in fits.items():
        off = made.dense((3,), made.weights((3,))) - kernel
        errors[name] = float(torch.nn.functional.conv2d(x, off[0]).square().sum())
    assert errors["outputs"] < 0.5 * errors["weights"]
    M, C = as_matrix(kernel, 1).reshape(1, 12, 3, 6), moment.reshape(1, 12, 3, 12, 3)
    P, Q, trace = alternate_on_outputs(M, C, draws(1, 12, 3, seed=4), 30)
    assert falls(trace)
    rest = (M - torch.einsum("gak,gkjo->gajo", P, Q)).reshape(36, 6)
    seen = (rest.T @ moment[0] @ rest).trace()
    assert trace[-1] == pytest.approx(float(seen), rel=1e-6)


def test_operations_of_scheme_two() -> None:
    C, N, K, d = 8, 12, 5, 3
    layer = nn.Conv2d(C, N, d, padding=1)
    made = DECOMPOSITIONS["spatial-alternating"](layer.weight.detach().unsqueeze(0))
    chain = made.build(layer, (K,), made.weights((K,)), layer.bias)
    assert macs(chain, torch.randn(1, C, 7, 7)) == 49 * (C * K * d + K * N * d)


def test_the_recipe_keeps_the_network_alive(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    (step,) = load_recipe("jaderberg").steps
    assert isinstance(step, Factorize)
    context = Context(task, model, torch.device("cpu"))
    small, _ = apply_step(step, copy.deepcopy(model), context)
    assert macs(small, task.example) <= 0.5 * macs(model, task.example)
    assert evaluate(small, task).value >= evaluate(model, task).value - 0.03
    kernels = [m.kernel_size for m in small.conv2]  # type: ignore[union-attr]
    assert kernels == [(3, 1), (1, 3)]
