# SPDX-License-Identifier: Apache-2.0
"""The sampler against exact probabilities; twins exclude each other; fusing is least squares."""

import itertools
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rarefy.prune.diverse_neurons import (
    elementary_symmetric,
    fuse,
    fusion,
    sample_k_dpp,
    similarity_kernel,
)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=7), st.integers(1, 5))
def test_elementary_symmetric_polynomials(values: list[float], k: int) -> None:
    E = elementary_symmetric(torch.tensor(values, dtype=torch.float64), k)
    for degree in range(k + 1):
        exact = sum(
            torch.tensor(list(c), dtype=torch.float64).prod()
            for c in itertools.combinations(values, degree)
        )
        assert abs(float(E[degree, -1].exp()) - float(exact)) <= 1e-9 * max(1.0, float(exact))


def test_subsets_are_as_frequent_as_their_determinants() -> None:
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    L = similarity_kernel(V, 0.3)
    subsets = list(itertools.combinations(range(6), 3))
    weights = torch.stack([torch.linalg.det(L[list(Y)][:, list(Y)]) for Y in subsets])
    total = elementary_symmetric(torch.linalg.eigvalsh(L), 3)[3, -1].exp()
    assert torch.allclose(weights.sum(), total)
    drawn = Counter(tuple(sample_k_dpp(L, 3, generator).tolist()) for _ in range(3000))
    expected = (3000 * weights / total).tolist()
    assert chisquare([drawn[Y] for Y in subsets], expected).pvalue > 0.01


def test_twins_are_never_drawn_together() -> None:
    V = torch.randn(6, 4, dtype=torch.float64)
    V[4] = V[1]
    L, generator = similarity_kernel(V, 0.5, damping=0.0), torch.Generator().manual_seed(0)
    for _ in range(300):
        assert not {1, 4} <= set(sample_k_dpp(L, 4, generator).tolist())


def test_fusing_never_makes_the_next_layer_worse() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        V = torch.randn(7, 40, dtype=torch.float64).relu()
        W, columns = torch.randn(3, 7, dtype=torch.float64), torch.arange(7).view(7, 1)
        survivors, pruned = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4, 5])
        A = fusion(V, survivors, pruned)
        fused = fuse(W, columns, A, survivors, pruned)
        deleted = W.clone()
        deleted[:, pruned] = 0
        assert (fused @ V - W @ V).norm() <= (deleted @ V - W @ V).norm()
        left = V[pruned] - A @ V[survivors]
        assert float((left @ V[survivors].mT).abs().max()) < 1e-4


def test_neurons_in_the_span_of_the_others_cost_nothing() -> None:
    torch.manual_seed(0)
    V = torch.randn(5, 30, dtype=torch.float64)
    V[4] = V[0] - 2 * V[2]
    columns = torch.arange(10).view(5, 2)  # two columns each, as behind a flattened map
    W = torch.randn(3, 10, dtype=torch.float64)
    survivors, pruned = torch.arange(4), torch.tensor([4])
    fused = fuse(W, columns, fusion(V, survivors, pruned), survivors, pruned)
    V2 = torch.randn(5, 30, dtype=torch.float64)
    V2[4] = V2[0] - 2 * V2[2]
    rows = torch.stack([V, V2], 1).flatten(0, 1).mT  # (30, 10)
    assert torch.allclose(rows @ fused.mT, rows @ W.mT, atol=1e-5)
