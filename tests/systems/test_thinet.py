# SPDX-License-Identifier: Apache-2.0
"""ThiNet on a trained network: greedy against random sets, scales, fine-tuning, the exported file."""

import copy
import itertools

import torch
from torch import nn

from rarefy.compress import run_recipe
from rarefy.graph.coupling import couple
from rarefy.measure.quality import batches_of, evaluate
from rarefy.prune.readers import readers_of, sample_rows
from rarefy.prune.rescale import scales
from rarefy.prune.thinet import Thinet, greedy_removal
from rarefy.recipe import load_recipe
from rarefy.step import Context
from rarefy.task import Task


def test_greedy_sets_on_real_layers(digits: tuple[nn.Module, Task]) -> None:
    """On eight channels at a time: never worse than random sets on average, nearly always the best three."""
    model, task = digits
    batches = list(batches_of(task, "calibration", 256))
    generator = torch.Generator().manual_seed(0)
    trials, best, random = 0, 0, 0
    for group in couple(model, task.example).groups:
        readers = readers_of(model, group) or []
        (rows,) = sample_rows(model, readers, batches, 1024, 0)
        outputs = torch.randint(len(readers[0].matrix), (len(rows),), generator=generator)
        X = readers[0].contributions(rows, outputs)
        y = X.sum(1)
        for _ in range(8):
            part = X[:, torch.randperm(group.size, generator=generator)[:8]]
            found = part[:, greedy_removal(part.mT @ part, 3)].sum(1).square().sum()
            every = [
                part[:, list(T)].sum(1).square().sum() for T in itertools.combinations(range(8), 3)
            ]
            trials += 1
            best += int(found <= min(every) * (1 + 1e-9))
            random += int(found <= sum(every) / len(every))
        stays = torch.randperm(group.size, generator=generator)[: group.size // 2]
        kept = X[:, stays]
        off = (kept @ scales(kept, y) - y).square().sum()
        assert off <= (kept.sum(1) - y).square().sum() * (1 + 1e-12)
    assert random == trials
    assert best >= 0.9 * trials


def test_scales_help_and_random_channels_do_not(digits: tuple[nn.Module, Task]) -> None:
    model, task = digits

    def accuracy(step: Thinet) -> float:
        context = Context(task, copy.deepcopy(model).eval(), torch.device("cpu"), 0)
        found = step.apply(copy.deepcopy(model), context)
        assert found.fc1.weight.shape == (32, 256)  # type: ignore[union-attr, operator]
        return evaluate(found, task).value

    assert accuracy(Thinet()) > accuracy(Thinet(rescale=False))


def test_half_of_the_channels_go_and_the_file_computes_the_same(
    digits: tuple[nn.Module, Task],
) -> None:
    model, task = digits
    dense = evaluate(model, task).value
    result = run_recipe(model, task, load_recipe("thinet"))
    first, last = result.measurements[0], result.measurements[-1]
    assert last["parameters"] < 0.3 * first["parameters"]
    assert last["macs"] < 0.35 * first["macs"]
    assert last["metric"]["value"] >= dense - 0.015
