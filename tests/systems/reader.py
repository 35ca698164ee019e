# SPDX-License-Identifier: Apache-2.0
"""A small transformer that reads digits row by row, for the checks of what shrinks transformers."""

import torch
from torch import Tensor, nn

from rarefy.loops.fit import fit
from rarefy.loops.optimise import Training
from rarefy.task import Task


class Reader(nn.Module):
    """A transformer over the eight rows of a digit, (B, 1, 8, 8)."""

    def __init__(self, depth: int = 4, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.places = nn.Parameter(0.1 * torch.randn(8, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.squeeze(1)) + self.places
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


def trained_reader(task: Task, epochs: int = 8, width: int = 24) -> nn.Module:
    """The transformer after some epochs on the task."""
    torch.manual_seed(0)
    settings = Training(epochs=epochs, rate=0.006, optimiser="adamw")
    return fit(Reader(width=width), task, settings, seed=0)
