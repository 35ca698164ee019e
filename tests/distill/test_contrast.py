# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses: their bounds, their chance level, and what the queue leaves out."""

import math

import pytest
import torch

from rarefy.distill.contrast import (
    Complementary,
    Contrastive,
    choice_loss,
    contrastive_loss,
    relation_scores,
)
from rarefy.distill.shown import Shown


def shown(s: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> Shown:
    return Shown([[(s, t)]], torch.zeros(len(s), 3), [torch.zeros(len(s), 3)], labels)


def test_a_guess_costs_the_logarithm_and_the_bound_holds() -> None:
    N = 15
    guess = contrastive_loss(torch.zeros(8), torch.zeros(8, N))
    assert float(guess) == pytest.approx(math.log(N + 1))
    sure = contrastive_loss(torch.full((8,), 50.0), torch.full((8, N), -50.0))
    assert float(sure) == pytest.approx(0, abs=1e-6)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):  # the information that the loss vouches for never exceeds log (N + 1)
        own, others = torch.randn(8, generator=draw), torch.randn(8, N, generator=draw)
        assert math.log(N + 1) - float(contrastive_loss(own, others)) <= math.log(N + 1)
    none = torch.zeros(8, N, dtype=torch.bool)
    assert float(contrastive_loss(torch.randn(8), torch.randn(8, N), none)) == pytest.approx(0)


def test_relations_are_least_for_a_student_like_its_teacher() -> None:
    t = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    relations = t[:1] - t
    equal = float(choice_loss(relation_scores(relations, relations, 0.01)))
    assert equal < math.log(16) / 16 + 0.05  # the anchor has no relation to itself
    other = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    assert float(choice_loss(relation_scores(t[:1] - other, relations, 0.01))) > 1
    assert float(choice_loss(torch.zeros(16, 16))) == pytest.approx(math.log(16))


def test_complementary_relations_pull_the_student_to_its_teacher() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(12, 4).requires_grad_(), torch.randn(12, 6)
    lesson = Complementary(shown(s, t))
    before = float(lesson(shown(s, t)).detach())
    assert before > math.log(12) - 0.5  # a guess, or worse
    optimiser = torch.optim.Adam([s, *lesson.parameters()], 0.1)
    for _ in range(50):
        optimiser.zero_grad()
        lesson(shown(s, t)).backward()
        optimiser.step()
    assert float(lesson(shown(s, t)).detach()) < 0.3 * before


def test_the_queue_holds_the_latest_and_spares_the_own_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    s, t = torch.randn(4, 5), torch.randn(4, 7)
    lesson = Contrastive(shown(s, t), size=3, queue=6)
    lesson(shown(s, t, labels))
    assert lesson.classes.tolist() == [0, 1, 2, 0, -1, -1]
    kept = lesson.memory[:, 0, :4].clone()
    lesson(shown(s + 1, t + 1, labels))
    assert lesson.classes.tolist() == [2, 0, 2, 0, 0, 1]
    assert not torch.equal(lesson.memory[:, 0, :2], kept[:, :2])
    assert torch.equal(lesson.memory[:, 0, 2:4], kept[:, 2:4])
    assert set(dict(lesson.named_buffers())) == {"memory", "classes", "next"}
    lesson.classes.fill_(0)
    alone = lesson(shown(s, t, torch.zeros(4, dtype=torch.long)))  # nobody of another class is left
    assert float(alone.detach()) == pytest.approx(0, abs=1e-6)
