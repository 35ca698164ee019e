# SPDX-License-Identifier: Apache-2.0
"""Row tradeoff: a front that nothing dominates, sizes of files on disk, confidence over seeds."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.recipe import Recipe
from rarefy.search.tradeoff import interval, knee, pareto_front, student_t, sweep, write_tradeoff
from rarefy.task import Task

values = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=14)


@given(values)
def test_front_is_exactly_what_brute_force_finds(points):
    costs, scores = zip(*points, strict=True)
    front = pareto_front(costs, scores)
    undominated = {
        points[i]
        for i in range(len(points))
        if not any(
            (costs[j] <= costs[i] and scores[j] > scores[i])
            or (costs[j] < costs[i] and scores[j] >= scores[i])
            for j in range(len(points))
        )
    }
    assert {points[i] for i in front} == undominated
    assert [costs[i] for i in front] == sorted({c for c, _ in undominated})


def test_knee_is_the_bend_of_a_bent_curve():
    costs = [1, 2, 4, 8, 16, 32]
    assert knee(costs, [0.1, 0.5, 0.9, 0.92, 0.94, 0.95]) == 2
    assert knee([4, 1], [0.9, 0.1]) == 0


@pytest.mark.parametrize("freedom", [1, 2, 5, 30])
def test_quantile_of_student_agrees_with_scipy(freedom):
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_interval_of_three_seeds_by_hand():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-5)
    assert interval([1.0]) is None


def test_sweep_states_the_size_of_the_file_on_disk(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    x = torch.randn(64, 1, 4, 4)
    batches = DataLoader(TensorDataset(x, model(x).argmax(1)), 16)
    task = Task("toy", x[:2], train=batches, validation=batches)
    recipes = {
        f"{bits} bits": Recipe.from_yaml(f"steps: [share-weights: {{bits: {bits}, epochs: 0}}]")
        for bits in (2, 6)
    }
    points = sweep(model, task, recipes, seeds=(0,), cache=tmp_path / "stages")
    assert [p.name for p in points] == ["baseline", "2 bits", "6 bits"]
    files = {f.stat().st_size for f in (tmp_path / "stages").glob("result-*/model.rfy")}
    assert points[1].size in files
    assert points[2].size in files
    assert points[0].metric == 1.0
    page = write_tradeoff(points, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    best = document["points"][document["pareto_front"][-1]]
    assert best["metric"] == max(p.metric for p in points)
    assert "bytes of the stored file" in page.read_text()
