# SPDX-License-Identifier: Apache-2.0
"""Dropout that follows the connections."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.mask import set_mask
from rarefy.prune.connections import (
    adjust_dropout,
    adjusted_rate,
    dropouts_before,
    living_connections,
)
from rarefy.select import select


def test_the_rule() -> None:
    assert adjusted_rate(0.5, before=400, after=100) == 0.25  # a quarter is kept: half the rate
    assert adjusted_rate(0.5, before=400, after=400) == 0.5
    assert adjusted_rate(0.5, before=400, after=0) == 0.0
    assert adjusted_rate(0.3, before=100, after=49) == pytest.approx(0.21)


class Network(nn.Module):
    """Dropouts that are registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.Dropout(0.4), nn.Dropout2d(0.2)
        self.fc = nn.Linear(8, 3)
        self.conv = nn.Conv2d(1, 2, 1)
        self.unused = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.early(x)).relu()
        return self.fc(self.late(x.flatten(1)))


def test_each_dropout_belongs_to_the_layer_whose_inputs_it_drops() -> None:
    torch.manual_seed(0)
    model = Network().train()
    layers = select(model)
    found = dropouts_before(model, layers, torch.randn(2, 1, 2, 2))
    assert {d: layer.name for d, layer in found.items()} == {model.early: "conv", model.late: "fc"}
    assert model.training
    rates = {d: d.p for d in found}
    connections = {layer: living_connections(layer) for layer in layers}
    keep = torch.zeros(3, 8, dtype=torch.bool)
    keep[:, :2] = True
    set_mask(model.fc, keep)
    for _ in range(2):  # from the rates at the start, however often
        adjust_dropout(found, rates, connections)
        assert model.late.p == pytest.approx(0.2)
        assert model.early.p == pytest.approx(0.2)
    assert model.unused.p == 0.9
