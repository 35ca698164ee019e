# SPDX-License-Identifier: Apache-2.0
"""Outputs are compared on a smaller image where the network takes the same path, else on the example."""

import pytest
import torch
from tests.graph.cuts import half
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.graph.proof import Outcome, cut
from rarefy.graph.smaller import smaller


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 224, 224), (1, 3, 96, 96)),
        ((2, 3, 128, 260), (1, 3, 64, 128)),
        ((1, 3, 8, 160, 192), (1, 3, 8, 64, 96)),
        ((2, 3, 127, 224), (2, 3, 127, 224)),
        ((2, 200, 200), (2, 200, 200)),
    ],
)
def test_the_first_image_of_half_the_side(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    found = smaller(x)
    assert isinstance(found, Tensor)
    assert found.shape == expected
    if found is not x:
        assert torch.equal(found, x[:1, ..., : expected[-2], : expected[-1]])


def test_what_is_no_image_stays() -> None:
    both = (torch.randn(2, 3, 256, 256), torch.randn(2, 3))
    whole = torch.zeros(2, 1, 256, 256, dtype=torch.long)
    assert smaller(both) is both
    assert smaller(whole) is whole


class Seen(nn.Module):
    """Two convolutions and a mean; notes the sizes of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape))
        return self.end(self.second(self.first(x).relu()))

    def end(self, x: Tensor) -> Tensor:
        """One number per channel."""
        return x.mean((2, 3))


class Picky(Seen):
    """Takes another path for small images."""

    def end(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.shape[-1] > 100 else x.amax((2, 3)).sigmoid()


class Flat(Seen):
    """Takes images of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * 124 * 124, 2)

    def end(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


IMAGES = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def cut_seen(model: Seen) -> Outcome:
    """Half of it gone; `sizes` are those of the proof."""
    coupling = couple(model.eval(), IMAGES)
    cuts = half(coupling)
    model.sizes = []
    outcome = cut(model, coupling, cuts, IMAGES)
    assert outcome.cut["first"] == 4
    assert not outcome.spared
    return outcome


def test_networks_for_all_sizes_are_compared_on_a_small_image_and_run_on_the_example() -> None:
    model = Seen()
    cut_seen(model)
    assert model.sizes == [(1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 128, 128)]


@pytest.mark.parametrize("kind", [Picky, Flat])
def test_others_are_compared_on_the_example(kind: type[Seen]) -> None:
    model = kind()
    cut_seen(model)
    assert model.sizes == [(1, 3, 64, 64), (2, 3, 128, 128), (2, 3, 128, 128)]
