# SPDX-License-Identifier: Apache-2.0
"""Row tetris: reordering never loses, block products are dense ones, better than blocks where they stand."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rarefy.measure.quality import evaluate
from rarefy.prune.tetris import block_norms, block_product, lowest_blocks, padded, tiled
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    sparsity=st.floats(0.1, 0.9),
    seed=st.integers(0, 20),
)
@settings(max_examples=40)
def test_the_pruned_norm_never_rises(
    rows: int, columns: int, height: int, width: int, sparsity: float, seed: int
) -> None:
    sizes = np.abs(np.random.default_rng(seed).normal(size=(rows, columns)))
    tiling, norms = tiled(sizes, (height, width), sparsity, 3)
    assert all(after <= before + 1e-9 for before, after in pairwise(norms))
    assert sorted(tiling.rows) == list(range(len(tiling.rows)))
    assert sorted(tiling.columns) == list(range(len(tiling.columns)))
    whole = padded(sizes, (height, width))
    assert whole[~tiling.mask()].sum() == pytest.approx(norms[-1])
    assert (~tiling.keep).sum() == round(sparsity * tiling.keep.size)


def test_hidden_blocks_are_found() -> None:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((8, 8)) < 0.25, np.ones((4, 4))) * (1 + rng.random((32, 32)))
    hidden = blocks[rng.permutation(32)][:, rng.permutation(32)]
    share = 1 - np.count_nonzero(block_norms(blocks, (4, 4))) / 64
    plain, norms = tiled(hidden, (4, 4), share, 0)
    found, after = tiled(hidden, (4, 4), share, 20)
    assert after[-1] < 0.6 * norms[-1]
    assert found.keep.sum() == plain.keep.sum()


def test_block_products_are_dense_products() -> None:
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(24, 16)), rng.normal(size=(16, 5))
    tiling, _ = tiled(np.abs(w), (4, 8), 0.5, 4)
    w = np.where(tiling.mask(), w, 0)
    assert np.allclose(block_product(w, tiling, x), w @ x)


def test_lowest_blocks_go() -> None:
    keep = lowest_blocks(np.array([[3.0, 1.0], [2.0, 4.0]]), 0.5)
    assert keep.tolist() == [[True, False], [False, True]]


def test_the_recipe_keeps_more_than_plain_blocks(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits
    (step,) = load_recipe("tetris").steps
    before = evaluate(model, task).value
    context = Context(task, copy.deepcopy(model), torch.device("cpu"), 0, {})
    replace(step, epochs=0).apply(copy.deepcopy(model), context)
    lost = context.record["pruned_norm"]
    assert lost["fc1"][-1] < 0.93 * lost["fc1"][0]
    found = step.apply(model, context)
    zeros = float((found.fc1.weight == 0).float().mean())
    assert zeros == pytest.approx(0.8, abs=0.01)
    assert evaluate(found, task).value > before - 0.03
