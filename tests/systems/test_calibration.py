# SPDX-License-Identifier: Apache-2.0
"""Row calibration: histograms merge without error, outliers are ignored, even levels keep their range."""

import copy
import dataclasses

import torch

from rarefy.forms.grid import Grid
from rarefy.loops.histogram import Histogram
from rarefy.quantize.calibration import calibrate, take_in
from rarefy.quantize.kernels import ONNXRUNTIME_CPU
from rarefy.quantize.prepared import prepare
from rarefy.quantize.ranges import BINS, choose_range, range_candidates
from rarefy.recipe import load_recipe
from rarefy.step import Context

GRID = Grid(8, signed=False, symmetric=False)
SIGNED = Grid(8, signed=True, symmetric=True)


def histogram(*parts):
    found = Histogram(BINS)
    for part in parts:
        found.update(part)
    return found


def test_partial_histograms_merge_to_the_whole():
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) ** 3
    whole, merged = histogram(x), histogram(x[:100]).merge(histogram(x[100:]))
    assert torch.equal(whole.counts, merged.counts)
    assert torch.equal(whole.edges(), merged.edges())
    for way in ("minmax", "percentile", "entropy", "mse"):
        assert choose_range(whole, way, GRID) == choose_range(merged, way, GRID)


def test_even_levels_keep_the_full_range():
    levels = torch.arange(1, 129).float().repeat(50) / 128
    low, high = choose_range(histogram(levels), "entropy", SIGNED)
    assert low == 0.0
    assert high >= 0.99


def test_a_planted_outlier_is_ignored():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    planted = histogram(torch.cat([x, torch.tensor([100.0])]))
    assert choose_range(planted, "minmax", GRID)[1] == 100.0
    for way in ("percentile", "entropy"):
        assert choose_range(planted, way, GRID)[1] < 20, way
    assert len(range_candidates(planted, GRID)) == 4


def test_the_split_into_batches_does_not_matter(digits_network, digits_task):
    inputs = torch.cat([x for x, _ in digits_task.batches("calibration")])[:96]
    found = []
    for size in (96, 32, 7):
        batches = list(inputs.split(size))
        task = dataclasses.replace(digits_task, calibration=batches, labelled=False)
        prepared = prepare(copy.deepcopy(digits_network), inputs[:2], ONNXRUNTIME_CPU)
        groups = prepared.placement.groups
        histograms = calibrate(prepared.model, task, groups, 96, torch.device("cpu"))
        found.append({name: choose_range(h, "minmax", GRID) for name, h in histograms.items()})
    for other in found[1:]:
        for name, ends in found[0].items():
            assert torch.allclose(torch.tensor(ends), torch.tensor(other[name]), rtol=1e-4), name


def test_large_tensors_are_thinned_the_same_way_whatever_the_batch():
    x = torch.randn(4, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    whole, parts = Histogram(BINS), Histogram(BINS)
    take_in(whole, x)
    for example in x:
        take_in(parts, example.unsqueeze(0))
    assert torch.equal(whole.counts, parts.counts)
    assert (whole.low, whole.high) == (float(x.min()), float(x.max()))
    assert whole.total() < x.numel()


def test_the_recipe_runs(digits_network, digits_task):
    (step,) = load_recipe("calibration").steps
    assert step.range == "entropy"
    context = Context(digits_task, digits_network, torch.device("cpu"))
    step.apply(copy.deepcopy(digits_network), context)
    assert context.record["integer_calls"]
