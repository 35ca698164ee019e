# SPDX-License-Identifier: Apache-2.0
"""Product, residual and binary quantisation of weights: tables, codes and what is stored."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rarefy.forms.shadow import bake
from rarefy.quantize.kmeans import cluster, nearest_codes
from rarefy.quantize.vector_quantization import (
    RowTables,
    VectorQuantization,
    cluster_rows,
    product_quantize,
    residual_quantize,
    sign_scaled,
    stored_bytes,
)
from rarefy.step import Context

W = np.random.default_rng(0).normal(size=(60, 10))


def decoded(tables: np.ndarray, codes: np.ndarray, summed: bool, columns: int) -> np.ndarray:
    rows = [[tables[t, code] for t, code in enumerate(row)] for row in codes]
    joined = [np.sum(row, 0) if summed else np.concatenate(row) for row in rows]
    return np.array(joined)[:, :columns]


def test_rows_that_repeat_are_found_exactly() -> None:
    centres = np.array([[0.0, 0], [5, 5], [-5, 3]])
    X = centres[np.random.default_rng(1).integers(0, 3, 50)]
    found, codes = cluster_rows(X, 8)
    assert len(found) == 3
    assert np.array_equal(found[codes], X)


def test_a_width_of_one_is_scalar_quantisation_of_every_column() -> None:
    tables, codes = product_quantize(W, 5, 1)
    for j in range(W.shape[1]):
        levels = cluster(W[:, j], 5)
        assert np.array_equal(tables[j, codes[:, j], 0], levels[nearest_codes(W[:, j], levels)])


@pytest.mark.parametrize("width", [2, 3, 10])
def test_product_codes_choose_the_nearest_entry(width) -> None:
    tables, codes = product_quantize(W, 6, width)
    assert tables.shape[0] == codes.shape[1] == -(-10 // width)
    padded = np.pad(W, ((0, 0), (0, -10 % width))).reshape(60, -1, width)
    for b in range(codes.shape[1]):
        distance = ((padded[:, b, None] - tables[b][None]) ** 2).sum(2)
        assert distance[np.arange(60), codes[:, b]] == pytest.approx(distance.min(1))


def test_every_stage_of_residuals_lowers_the_error() -> None:
    errors = []
    for stages in (1, 2, 3):
        tables, codes = residual_quantize(W, 8, stages)
        errors.append(((decoded(tables, codes, True, 10) - W) ** 2).sum())
    assert errors[0] > errors[1] > errors[2]
    product, codes = residual_quantize(W, 60, 1)
    assert decoded(product, codes, True, 10) == pytest.approx(W)


@pytest.mark.parametrize("summed", [False, True])
def test_the_form_gives_what_the_tables_say(summed) -> None:
    tables, codes = residual_quantize(W, 8, 2) if summed else product_quantize(W, 8, 4)
    form = RowTables(torch.from_numpy(codes), (60, 2, 5), summed)
    found = form(torch.from_numpy(tables)).flatten(1).numpy()
    assert found == pytest.approx(decoded(tables, codes, summed, 10))


def test_signs_keep_the_least_squares_factor() -> None:
    w = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    assert sign_scaled(w).tolist() == [[1.5, -1.5], [1.5, 1.5]]
    for a in (1.4, 1.6):
        assert (sign_scaled(w) - w).square().sum() < (
            a * w.sign() + a * (w == 0) - w
        ).square().sum()


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (VectorQuantization(levels=8, width=2), 0.4),
        (VectorQuantization("residual", levels=8, stages=2), 0.7),
        (VectorQuantization("binary"), 1 / 31),
    ],
)
def test_a_step_stores_tables_and_codes_alone(step, share, digits) -> None:
    model, task = digits
    before = copy.deepcopy(model)
    context = Context(task, before, torch.device("cpu"))
    bake(step.apply(model, context))
    quantised = {"fc1", "fc2"} - set(context.record["left_alone"])
    assert "fc1" in quantised
    x = task.example
    assert torch.isfinite(model(x)).all()
    assert torch.equal(model.conv1.weight, before.conv1.weight)
    if step.method == "binary":
        assert model.fc1.weight.unique().numel() == 2
        return
    held = model.fc1.parametrizations.weight
    codes, tables = held[0].codes, held.original
    stored = stored_bytes(tables.numpy(force=True), codes.numpy())
    assert stored <= share * 4 * before.fc1.weight.numel()
    error = (model.fc1.weight - before.fc1.weight).norm() / before.fc1.weight.norm()
    assert error < 0.9


def test_a_layer_for_which_it_does_not_pay_is_left_alone(digits_task) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight = model[1].weight.detach().clone()
    context = Context(digits_task, model, torch.device("cpu"))
    VectorQuantization(levels=256).apply(model, context)
    assert context.record["left_alone"] == ["1"]
    assert torch.equal(model[1].weight, weight)
