# SPDX-License-Identifier: Apache-2.0
"""Networks that several tests of the export look at; exported once, for tracing takes seconds."""

import pytest
import torch
from torch import Tensor, nn

from rarefy.forms.activations import quantize_sites
from rarefy.forms.affine import OnGrid
from rarefy.forms.grid import Grid, grid_for_range
from rarefy.forms.shadow import dress


class Small(nn.Module):
    """conv - relu - conv - relu - mean - linear on (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(x.mean((2, 3)))


def on_grid(module: nn.Module, bits: int = 8) -> None:
    """Puts a weight on a symmetric grid of so many bits, one scale for each output channel."""
    grid = Grid(bits, narrow=True)
    rows = module.weight.detach().flatten(1)  # type: ignore[operator, union-attr]
    scale, zero_point = grid_for_range(rows.amin(1), rows.amax(1), grid)
    dress(module, "weight", OnGrid(scale, zero_point, grid, 0))


@pytest.fixture
def small() -> nn.Module:
    """The float network."""
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def quantised(small: nn.Module) -> nn.Module:
    """The same with 8-bit weights and activations, every site on the grid."""
    for layer in (small.conv1, small.conv2, small.fc):
        on_grid(layer)  # type: ignore[arg-type]
    ranges = {
        "input#0": (-3.0, 3.0),
        ":relu#0": (0.0, 2.0),
        ":relu#1": (0.0, 1.0),
        ":mean#0": (0.0, 0.5),
        "fc:linear#0": (-1.0, 1.0),
    }
    quantize_sites(small, ranges, lambda _: Grid(8, signed=False, symmetric=False))
    return small
