# SPDX-License-Identifier: Apache-2.0
"""Learning rates by closed form, and which weights decay."""

import math

import pytest
import torch
from torch import nn

from rarefy.loops.optimise import Average, Training, build_optimiser, rate_factor


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("linear", 0.55, 0.5),
        ("constant", 0.99, 1.0),
        ("step", 0.54, 1.0),
        ("step", 0.56, 0.1),
        ("step", 0.8, 0.01),
    ],
)
def test_schedules(schedule: str, progress: float, factor: float) -> None:
    settings = Training(schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    assert rate_factor(settings, progress) == pytest.approx(factor, abs=1e-9)
    assert rate_factor(settings, 0.05) == pytest.approx(0.5)
    assert rate_factor(settings, 0.1) == pytest.approx(1.0)


def test_without_warm_up_training_starts_at_the_full_rate() -> None:
    assert rate_factor(Training(warmup=0.0), 0.0) == 1.0


def test_decay_spares_biases_norms_and_frozen_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    optimiser = build_optimiser(model.parameters(), Training(weight_decay=0.1))
    groups = {
        group["weight_decay"]: {id(p) for p in group["params"]} for group in optimiser.param_groups
    }
    assert groups[0.1] == {id(model[0].weight)}
    others = {id(p) for p in model.parameters() if p.dim() < 2}
    assert groups[0.0] == others


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_optimisers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    layer = nn.Linear(2, 2)
    settings = Training(optimiser=name, rate=0.3, momentum=0.7)  # type: ignore[arg-type]
    found = build_optimiser(layer.parameters(), settings)
    assert type(found) is kind
    assert found.param_groups[0]["lr"] == 0.3
    if name == "sgd":
        assert found.param_groups[0]["nesterov"]
        assert found.param_groups[0]["momentum"] == 0.7
    else:
        assert found.param_groups[0]["betas"] == (0.7, 0.999)


def test_plain_descent_has_no_nesterov() -> None:
    settings = Training(momentum=0.0)
    assert not build_optimiser(nn.Linear(1, 1).parameters(), settings).param_groups[0]["nesterov"]


def test_an_average_of_equal_weights_is_these_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.99)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3.0)
    for _ in range(2000):
        average.update(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    average.store(model)
    assert all(torch.allclose(p, torch.full_like(p, 3.0), atol=1e-5) for p in model.parameters())
    assert math.isclose(average.decay, 0.99)
