# SPDX-License-Identifier: Apache-2.0
"""Exact counts, deterministic ties, and each rule's own property."""

import math
from statistics import NormalDist
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.prune import allocation
from rarefy.prune.allocation import (
    allocate,
    deviation,
    erk_densities,
    keep_largest,
    lamp_scores,
    normalised,
    std_mask,
    whole_counts,
)

ALLOCATIONS = ("local", "global", "lamp", "erk", "std", "normalised")
SHAPES = [torch.Size(s) for s in ((8, 3, 3, 3), (16, 8, 3, 3), (10, 40), (1, 1))]


def weights(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = (1.0, 0.1, 3.0, 1.0)
    return [torch.randn(s, generator=generator) * k for s, k in zip(SHAPES, scales, strict=True)]


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_keep_largest_is_exact_and_ties_go_to_the_lower_index(values, data) -> None:  # type: ignore[no-untyped-def]
    keep = data.draw(st.integers(0, len(values)))
    mask = keep_largest(torch.tensor(values), keep)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert set(mask.nonzero().flatten().tolist()) == set(order[:keep])


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(sparsity=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_counts_are_exact(allocation: str, sparsity: float) -> None:
    w = weights()
    masks = allocate(allocation, [x.abs() for x in w], w, sparsity)
    zeros = [int((~m).sum()) for m in masks]
    if allocation == "local":
        assert zeros == [round(sparsity * x.numel()) for x in w]
    else:
        assert sum(zeros) == round(sparsity * sum(x.numel() for x in w))
    assert [m.shape for m in masks] == SHAPES


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_what_is_gone_goes_first(allocation: str) -> None:
    w = weights()
    first = allocate(allocation, [x.abs() for x in w], w, 0.5)
    masked = [x * m for x, m in zip(w, first, strict=True)]
    scores = [torch.where(m, x.abs(), -1.0) for x, m in zip(masked, first, strict=True)]
    again = allocate(allocation, scores, masked, 0.5)
    then = allocate(allocation, scores, masked, 0.8)
    for a, b, c in zip(first, again, then, strict=True):
        assert torch.equal(a, b)
        assert not (c & ~a).any()


def test_ties_are_broken_by_index_over_layers() -> None:
    same = [torch.ones(2, 3), torch.ones(4)]
    masks = allocate("global", same, same, 0.5)
    assert [m.flatten().tolist() for m in masks] == [[True] * 5 + [False], [False] * 4]


def test_lamp_by_hand_and_the_layers_largest_is_one() -> None:
    scores = lamp_scores(torch.tensor([[1.0, -1.0], [3.0, 2.0]]).abs())
    expected = [[1 / 14, 1 / 15], [1.0, 4 / 13]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    for w in weights():
        assert float(lamp_scores(w.abs()).max()) == 1.0
        assert float(lamp_scores(torch.ones_like(w)).max()) == 1.0  # ties or not


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 1e-20, 3e20, 7.0]), min_size=1, max_size=40))
def test_lamp_is_its_formula_with_ties_ranked_by_index(values: list[float]) -> None:
    with mock.patch.object(allocation, "BLOCK", 7):  # so that blocks meet
        found = lamp_scores(torch.tensor(values))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    total, expected = 0.0, [0.0] * len(values)
    for i in order:
        square = float(torch.tensor(values[i]).double()) ** 2
        total += square
        expected[i] = square / total if total else 0.0
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-6, atol=0)


def test_lamp_leaves_a_weight_in_every_layer() -> None:
    w = weights()
    masks = allocate("lamp", [x.abs() for x in w], w, 1 - 4 / sum(x.numel() for x in w))
    assert [int(m.sum()) for m in masks] == [1, 1, 1, 1]
    masks = allocate("global", [x.abs() for x in w], w, 0.9)
    assert int(masks[1].sum()) == 0, "where one threshold empties a layer of small weights"


def test_global_and_local_differ() -> None:
    w = weights()
    scores = [x.abs() for x in w]
    a, b = (allocate(rule, scores, w, 0.5) for rule in ("global", "local"))
    assert any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


convolutions = st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5))


@given(st.lists(convolutions, min_size=1, max_size=6), st.floats(0.001, 1))
@settings(deadline=None)
def test_erk_densities_meet_the_budget(shapes, density) -> None:  # type: ignore[no-untyped-def]
    sizes = [torch.Size((o, i, k, k)) for o, i, k in shapes]
    found = erk_densities(sizes, density)
    assert all(0 <= d <= 1 for d in found)
    counts = [math.prod(s) for s in sizes]
    got = sum(d * n for d, n in zip(found, counts, strict=True))
    assert got == pytest.approx(density * sum(counts), abs=1e-6 * sum(counts))
    raw = [sum(s) / n for s, n in zip(sizes, counts, strict=True)]
    scale = {round(d / r, 9) for d, r in zip(found, raw, strict=True) if d < 1 - 1e-9}
    assert len(scale) <= 1, "all layers below 1 share one factor"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_whole_counts(shares: list[float]) -> None:
    limits = [math.ceil(s) + 1 for s in shares]
    total = round(sum(shares))
    counts = whole_counts(shares, limits, total)
    assert sum(counts) == total
    assert all(0 <= c <= limit for c, limit in zip(counts, limits, strict=True))
    assert all(abs(c - s) <= 1 for c, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize("quality", [0.5, 1.0, 2.0])
def test_the_std_rule_keeps_the_gaussian_share(quality: float) -> None:
    w = torch.randn(400, 500, generator=torch.Generator().manual_seed(0)) * 0.03
    kept = float(std_mask(w, quality).double().mean())
    assert kept == pytest.approx(2 * (1 - NormalDist().cdf(quality)), abs=0.01)


def test_the_std_allocation_is_one_factor_for_all_layers() -> None:
    w = weights()[:3]
    masks = allocate("std", [x.abs() for x in w], w, 0.6)
    least = [float(x.abs()[m].min()) / deviation(x) for x, m in zip(w, masks, strict=True)]
    most = [float(x.abs()[~m].max()) / deviation(x) for x, m in zip(w, masks, strict=True)]
    assert max(most) <= min(least)


def test_deviation_counts_living_weights_only() -> None:
    w = torch.tensor([1.0, -1.0, 0.0, 0.0])
    assert deviation(w) == 1.0
    assert deviation(torch.zeros(3)) == 0.0


def test_normalised_layers_are_comparable() -> None:
    w = torch.rand(5, 5)
    torch.testing.assert_close(normalised(w), normalised(100 * w))
    assert float(normalised(w).norm()) == pytest.approx(1)
    assert not normalised(torch.zeros(2)).any()


def test_equal_layers_get_equal_shares_by_every_rule() -> None:
    w = [torch.randn(20, 20, generator=torch.Generator().manual_seed(0))] * 2
    for rule in ALLOCATIONS:
        a, b = allocate(rule, [x.abs() for x in w], w, 0.7)
        assert abs(int(a.sum()) - int(b.sum())) <= 1
