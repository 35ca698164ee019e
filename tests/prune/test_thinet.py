# SPDX-License-Identifier: Apache-2.0
"""Greedy choice against brute force, least-squares scales, contributions that add up."""

import itertools

import pytest
import torch
from torch import nn

from rarefy.graph.coupling import couple
from rarefy.loops.matrix import rows_of
from rarefy.prune.readers import readers_of
from rarefy.prune.rescale import scales
from rarefy.prune.thinet import greedy_removal


def energy(X: torch.Tensor, T: tuple[int, ...]) -> float:
    return float(X[:, list(T)].sum(1).square().sum())


def test_greedy_nearly_always_finds_the_best_three_of_eight() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(100):
        mean = torch.randn(1, 8, generator=generator, dtype=torch.float64)
        spread = torch.logspace(-1.5, 1, 8, dtype=torch.float64)  # channels of unlike strength
        X = (torch.randn(64, 8, generator=generator, dtype=torch.float64) + mean) * spread
        found = greedy_removal(X.mT @ X, 3)
        every = {T: energy(X, T) for T in itertools.combinations(range(8), 3)}
        least = min(every.values())
        assert energy(X, tuple(found.tolist())) <= sorted(every.values())[28] + 1e-9
        hits += energy(X, tuple(found.tolist())) <= least * (1 + 1e-9)
    assert hits >= 90


def test_channels_that_cancel_go_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 1, dtype=torch.float64)
    X = torch.cat([5 * x, -5 * x, torch.randn(50, 1, dtype=torch.float64)], 1)
    # alone, either of the pair costs most; the third goes first, then the pair is complete
    found = greedy_removal(X.mT @ X, 1).tolist()
    assert found == [2]
    big = torch.cat([X[:, :2] + 0.01, 20 + X[:, 2:]], 1)
    assert sorted(greedy_removal(big.mT @ big, 2).tolist()) == [0, 1]


def test_scales_are_least_squares_and_never_worse_than_ones() -> None:
    torch.manual_seed(0)
    X = torch.randn(200, 5, dtype=torch.float64)
    y = X @ torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0], dtype=torch.float64)
    assert torch.allclose(scales(X, y, 1e-12), torch.linalg.lstsq(X, y).solution, atol=1e-8)
    twins = torch.cat([X, X], 1)  # no unique solution
    w = scales(twins, y)
    assert (twins @ w - y).square().sum() <= (twins.sum(1) - y).square().sum()
    assert torch.allclose(scales(X, X.sum(1)), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["conv", "strided", "linear", "flat", "transposed"])
def test_contributions_add_up_to_the_next_layer(kind: str) -> None:
    torch.manual_seed(0)
    head: nn.Module
    if kind == "linear":
        body, x, head = nn.Linear(5, 6), torch.randn(3, 5), nn.Linear(6, 4)
    elif kind == "flat":
        body, x = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten()), torch.randn(3, 2, 5, 5)
        head = nn.Linear(54, 4)
    else:
        body, x = nn.Conv2d(2, 6, 3), torch.randn(3, 2, 9, 9)
        heads = {
            "conv": nn.Conv2d(6, 4, 3, padding=1),
            "strided": nn.Conv2d(6, 4, 3, stride=2, dilation=2),
            "transposed": nn.ConvTranspose2d(6, 4, 3, stride=2),
        }
        head = heads[kind]
    model = nn.Sequential(body, nn.ReLU(), head).eval()
    group = couple(model, x).groups[0]
    (reader,) = readers_of(model, group) or []
    seen = model[:2](x)
    rows = rows_of(head, seen).double()
    y = head(seen) - (head.bias if y_is_flat(head) else head.bias.view(-1, 1, 1))  # type: ignore
    y = y if y_is_flat(head) else y.movedim(1, -1).reshape(-1, 4)
    for o in range(4):
        parts = reader.contributions(rows, torch.full((len(rows),), o))
        assert parts.shape == (len(rows), group.size)
        assert torch.allclose(parts.sum(1).float(), y[:, o], atol=1e-5)


def y_is_flat(head: nn.Module) -> bool:
    return isinstance(head, nn.Linear)
