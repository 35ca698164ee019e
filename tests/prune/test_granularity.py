# SPDX-License-Identifier: Apache-2.0
"""N:M patterns and blocks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import RecipeError
from rarefy.prune.granularity import n_of_m, parse, pool_blocks, spread_blocks


def test_parse() -> None:
    assert parse("element") == ("element", 1, 1)
    assert parse("2:4") == ("n:m", 2, 4)
    assert parse("4x1") == ("block", 4, 1)
    with pytest.raises(RecipeError, match="'4:4' keeps everything"):
        parse("4:4")


@given(st.integers(1, 5), st.integers(1, 11), st.integers(1, 4), st.integers(2, 5))
@settings(deadline=None)
def test_n_of_m_keeps_the_largest_of_every_group(out: int, width: int, n: int, m: int) -> None:
    n = min(n, m - 1)
    generator = torch.Generator().manual_seed(out * 100 + width)
    scores = torch.randint(0, 4, (out, width, 2), generator=generator).float()
    keep = n_of_m(scores, n, m)
    assert keep.shape == scores.shape
    for o, k in itertools.product(range(out), range(2)):
        for start in range(0, width, m):
            group = scores[o, start : start + m, k]
            kept = keep[o, start : start + m, k]
            assert int(kept.sum()) == min(n, len(group))
            order = sorted(range(len(group)), key=lambda i: (-float(group[i]), i))
            assert set(kept.nonzero().flatten().tolist()) == set(order[:n])


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None)
def test_blocks(rows: int, columns: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows * 10 + columns)
    scores = torch.rand(rows, columns, 2, generator=generator)
    pooled = pool_blocks(scores, height, width)
    flat = scores.flatten(1)
    assert pooled.shape == (-(-rows // height), -(-columns * 2 // width))
    for i, j in itertools.product(*map(range, pooled.shape)):
        block = flat[i * height : (i + 1) * height, j * width : (j + 1) * width]
        assert float(pooled[i, j]) == pytest.approx(float(block.sum()), rel=1e-5)
        only = torch.zeros_like(pooled, dtype=torch.bool)
        only[i, j] = True
        marked = spread_blocks(only, height, width, scores.shape).flatten(1)
        expected = torch.zeros_like(flat, dtype=torch.bool)
        expected[i * height : (i + 1) * height, j * width : (j + 1) * width] = True
        assert torch.equal(marked, expected)


def test_blocks_that_are_gone_are_marked() -> None:
    scores = torch.tensor([[-1.0, -1.0, 2.0, -1.0]])
    assert pool_blocks(scores, 1, 2).tolist() == [[-1.0, 2.0]]
