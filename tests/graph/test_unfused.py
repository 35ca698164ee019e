# SPDX-License-Identifier: Apache-2.0
"""Networks that keep something they computed from their parameters: it follows a cut, too."""

import torch
from tests.graph.cuts import cut_half, seen
from torch import Tensor, nn

from rarefy.graph.unfused import forget

ROWS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Remembering(nn.Module):
    """Attention of four heads, whose biases are looked up once and kept until the mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 3
        self.qkv = nn.Linear(6, 36)
        self.out = nn.Linear(12, 2)
        self.table = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("places", torch.randint(0, 5, (5, 5)))
        self.known: Tensor | None = None

    def train(self, mode: bool = True) -> "Remembering":
        self.known = None
        return super().train(mode)

    def biases(self) -> Tensor:
        """For every head and pair of positions, shape (heads, 5, 5)."""
        if self.training:
            return self.table[:, self.places]
        if self.known is None:
            self.known = self.table[:, self.places]
        return self.known

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).view(len(x), 5, self.heads, -1).permute(0, 2, 1, 3)
        q, k, v = parts.split([self.size] * 3, dim=3)
        weights = (q @ k.transpose(2, 3) + self.biases()).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(len(x), 5, -1))


def network() -> Remembering:
    """One that has already run, so that it knows its biases."""
    torch.manual_seed(0)
    model = Remembering().eval()
    model(ROWS)
    return model


def test_what_a_network_keeps_is_computed_anew_while_it_is_looked_at() -> None:
    size, axes = seen(network(), ROWS)["qkv"]
    assert (size, axes["table:0"], axes["qkv.weight:0"]) == (4, 4, 36)


def test_what_a_network_keeps_is_computed_anew_after_a_cut() -> None:
    model = network()
    _, outcome = cut_half(model, ROWS)
    assert not outcome.spared
    assert outcome.cut == {"qkv": 2}
    assert model.heads == 2
    assert model.table.shape == (2, 5)
    found = model(ROWS)
    model.known = None
    torch.testing.assert_close(found, model(ROWS))


def test_forgetting_leaves_modes_as_they_are() -> None:
    model = nn.Sequential(network(), nn.Dropout())
    model[1].train()
    forget(model)
    assert [m.training for m in model] == [False, True]
    assert model[0].known is None
