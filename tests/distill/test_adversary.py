# SPDX-License-Identifier: Apache-2.0
"""The discriminator descends what the student climbs."""

import math

import pytest
import torch

from rarefy.distill.adversary import Adversary, discrimination_loss, reversed_gradient
from rarefy.distill.shown import Shown


def test_the_gradient_turns_round() -> None:
    x = torch.randn(3, requires_grad=True)
    (3 * reversed_gradient(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-3.0] * 3


def test_a_guess_costs_log_two() -> None:
    zero = torch.zeros(5)
    assert float(discrimination_loss(zero, zero)) == pytest.approx(math.log(2))
    assert float(discrimination_loss(torch.full((5,), -9.0), torch.full((5,), 9.0))) < 0.001


def test_each_side_moves_against_the_other() -> None:
    torch.manual_seed(0)
    labels = torch.arange(32) % 4
    answers, theirs = torch.randn(32, 4, requires_grad=True), torch.randn(32, 4) + 1
    lesson = Adversary(Shown([[]], answers, [theirs], labels))
    before = lesson(Shown([[]], answers, [theirs], labels))
    before.backward()
    assert answers.grad is not None
    with torch.no_grad():
        moved = answers - 0.5 * answers.grad  # as an optimiser would: down, and so up the loss
        assert float(lesson(Shown([[]], moved, [theirs], labels))) > float(before)
        assert float(lesson.judge(moved, labels).mean()) > float(
            lesson.judge(answers, labels).mean()
        )
        for p in lesson.parameters():
            assert p.grad is not None
            p -= 0.1 * p.grad
        assert float(lesson(Shown([[]], answers, [theirs], labels))) < float(before)


def test_in_the_end_it_is_left_guessing() -> None:
    torch.manual_seed(0)
    shift = torch.tensor(2.0, requires_grad=True)  # the student's only weight

    def shown() -> Shown:
        return Shown([[]], torch.randn(128, 1) + shift, [torch.randn(128, 1)])

    lesson = Adversary(shown(), size=16)
    optimiser = torch.optim.Adam(
        [{"params": lesson.parameters(), "lr": 0.02}, {"params": [shift], "lr": 0.02}]
    )
    for _ in range(400):
        optimiser.zero_grad()
        lesson(shown()).backward()
        optimiser.step()
    assert abs(float(shift.detach())) < 0.5
    batch = shown()
    right = torch.cat(
        [lesson.judge(batch.answers, None) < 0, lesson.judge(batch.references[0], None) > 0]
    )
    assert abs(float(right.float().mean()) - 0.5) < 0.15
