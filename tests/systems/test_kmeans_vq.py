# SPDX-License-Identifier: Apache-2.0
"""Row kmeans-vq: Lloyd never gets worse, one dimension is solved exactly, products of one are scalar."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rarefy.measure.quality import evaluate
from rarefy.quantize.kmeans import (
    cluster,
    codebook_bytes,
    line_of,
    lloyd,
    nearest_codes,
    optimal_levels,
    start_levels,
)
from rarefy.quantize.share_weights import ShareWeights
from rarefy.quantize.vector_quantization import (
    VectorQuantization,
    product_quantize,
    residual_quantize,
)
from rarefy.step import Context


def error(values, levels):
    return float(((values - levels[nearest_codes(values, levels)]) ** 2).sum())


@given(st.lists(st.integers(-40, 40), min_size=4, max_size=9, unique=True), st.integers(2, 3))
def test_optimum_equals_brute_force(points, k):
    x = np.sort(np.array(points, float))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(x, cuts))
        for cuts in itertools.combinations(range(1, len(x)), k - 1)
    )
    assert error(x, np.sort(optimal_levels(x, k))) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("start", ["linear", "random", "density"])
def test_distortion_never_rises(start):
    values = np.random.default_rng(0).standard_normal(3000)
    line = line_of(values)
    _, errors = lloyd(line, start_levels(line, 16, start))
    assert np.all(np.diff(errors) <= 1e-9 * errors[0])


def test_few_distinct_values_lose_nothing_and_decoding_is_idempotent():
    values = np.random.default_rng(1).choice(np.linspace(-1, 1, 200), 5000)
    levels = cluster(values, 256)
    assert error(values, levels) == 0
    levels = cluster(values, 16)
    once = levels[nearest_codes(values, levels)]
    assert np.array_equal(levels[nearest_codes(once, levels)], once)


def test_size():
    assert codebook_bytes(1000, 256) == 1000 + 4 * 256
    assert codebook_bytes(1000, 16) == 500 + 64


def test_products_of_width_one_are_scalars_and_residuals_help():
    W = np.random.default_rng(2).standard_normal((64, 6))
    tables, codes = product_quantize(W, 8, 1)
    for column in range(6):
        found = tables[column][codes[:, column], 0]
        best = error(W[:, column], cluster(W[:, column], 8))
        assert ((W[:, column] - found) ** 2).sum() == pytest.approx(best)
    errors = []
    for stages in (1, 2, 3):
        tables, codes = residual_quantize(W, 8, stages)
        rebuilt = sum(tables[s][codes[:, s]] for s in range(stages))
        errors.append(float(((W - rebuilt) ** 2).sum()))
    assert errors == sorted(errors, reverse=True)


def test_dense_layers_sixteen_times_smaller_lose_about_a_point(digits_network, digits_task):
    """Four values for every weight of the dense layers: 2 bits in the place of 32, nothing trained."""
    before = evaluate(digits_network, digits_task).value
    model = copy.deepcopy(digits_network)
    context = Context(digits_task, digits_network, torch.device("cpu"))
    step = ShareWeights(levels=4, initialisation="exact", epochs=0, layers="type:Linear")
    step.apply(model, context)
    weights = [model.fc1.weight, model.fc2.weight]
    assert all(w.unique().numel() <= 4 for w in weights)
    coded = sum(codebook_bytes(w.numel(), 4) for w in weights)
    assert coded <= sum(4 * w.numel() for w in weights) / 15.9
    assert evaluate(model, digits_task).value >= before - 0.02
    # signs alone, the baseline, lose more in the weights themselves
    signs = copy.deepcopy(digits_network)
    VectorQuantization("binary").apply(signs, context)
    exact = digits_network.fc1.weight
    assert (signs.fc1.weight - exact).norm() > 1.5 * (model.fc1.weight - exact).norm()
