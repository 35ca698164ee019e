# SPDX-License-Identifier: Apache-2.0
"""Decisions between values that are as good as equal don't make two networks differ; others do."""

from typing import Any

import pytest
import torch
from tests.graph.cuts import cut_half
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.graph.decisions import Deciding, Decision, Following, difference

TIED = torch.tensor([1.0, 2.0, 2.0 + 1e-6, 0.5])
TURNED = torch.tensor([1.0, 2.0 + 1e-6, 2.0, 0.5])


def decisions(values: Tensor) -> list[Decision]:
    """What a ranking and a threshold decide."""
    with Deciding() as seen:
        ranked(values)
    return seen.taken


def ranked(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two largest, where they stand, and what lies above 1."""
    best = values.topk(2)
    return best.values, best.indices, (values > 1).nonzero()[:, 0]


def test_what_takes_real_numbers_and_gives_others_is_a_decision() -> None:
    found = decisions(TIED)
    assert [d.name for d in found] == ["topk", "gt"]
    assert found[0].taken[1].tolist() == [2, 1]
    torch.testing.assert_close(found[1].upon[0], TIED)


def test_a_tie_is_decided_as_before_with_values_of_ones_own() -> None:
    assert ranked(TURNED)[1].tolist() == [1, 2]
    with Following(decisions(TIED), 1e-4):
        values, places, above = ranked(TURNED)
    assert places.tolist() == [2, 1]
    assert above.tolist() == [1, 2]
    assert values.tolist() == TURNED.topk(2).values.tolist()


@pytest.mark.parametrize("other", [TURNED * 1.1, TURNED.flip(0), TURNED[:3]])
def test_upon_other_values_everybody_decides_alone(other: Tensor) -> None:
    with Following(decisions(TIED), 1e-4):
        found = ranked(other)
    assert all(torch.equal(a, b) for a, b in zip(found, ranked(other), strict=True))


def test_difference_is_a_share_of_the_range_and_of_integers_all_or_nothing() -> None:
    assert difference(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0])) == pytest.approx(0.25)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")


class Chooser(nn.Module):
    """Gives the features of the eight of many nearly equal rows that score best."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 64)
        self.score = nn.Linear(64, 1)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).tanh()
        scores = self.score(h)[..., 0]
        places = scores.topk(8).indices
        return self.last(h)[places], places


def test_a_network_that_chooses_among_nearly_equal_rows_shrinks() -> None:
    model = Chooser().eval()
    rows = torch.randn(1, 6) + 1e-7 * torch.randn(200, 6)
    coupling = couple(model, rows)
    assert coupling.book.decides
    _, outcome = cut_half(model, rows)
    assert outcome.cut == {"first": 32}
    assert not outcome.spared


def test_a_network_without_decisions_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert not couple(model, torch.randn(2, 4)).book.decides
