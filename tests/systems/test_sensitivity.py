# SPDX-License-Identifier: Apache-2.0
"""Sensitivity analysis: the network comes back bit for bit, every layer and group is probed once a share."""

import torch
from torch import nn

from rarefy.measure.quality import evaluate
from rarefy.recipe import load_recipe
from rarefy.report.fragility import bearable_sparsity
from rarefy.report.group_sensitivity import group_sensitivity
from rarefy.report.schema import Metric, Probe
from rarefy.report.sensitivity import sensitivity
from rarefy.task import Task

SHARES = (0.001, 0.5, 0.9)


def test_the_row(digits: tuple[nn.Module, Task]) -> None:
    assert load_recipe("sensitivity").steps == ()
    model, task = digits
    before = {name: t.clone() for name, t in model.state_dict().items()}
    baseline = evaluate(model, task, "validation").value
    layers = sensitivity(model, task, sparsities=SHARES)
    groups = group_sensitivity(model, task, sparsities=SHARES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert len(layers) == 4 * len(SHARES)
    assert len(groups) == 3 * len(SHARES)
    untouched = [r for r in groups if r["cut"] == 0] + [
        r for r in layers if round(r["sparsity"] * r["parameters"]) == 0
    ]
    assert len(untouched) >= 4
    assert all(row["metric"] == baseline for row in untouched)
    metric = Metric(name="accuracy", value=baseline)
    for rows in (layers, groups):
        for name in {row["layer"] for row in rows}:
            probes = [Probe.model_validate(r) for r in rows if r["layer"] == name]
            ratios = [bearable_sparsity(probes, metric, t) for t in (0.0, 0.02, 0.2, 2.0)]
            assert ratios == sorted(ratios)
            assert ratios[-1] == 0.9
