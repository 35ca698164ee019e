# SPDX-License-Identifier: Apache-2.0
"""Losses of imitation: zero for equals, and the limits of temperature."""

import pytest
import torch
from torch.nn import functional as F

from rarefy.loops.losses import imitation_loss, logit_loss, soft_target_loss


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    return s, t


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_zero_and_flat_when_student_and_teacher_agree(temperature: float) -> None:
    s = logits()[0].requires_grad_()
    loss = soft_target_loss(s, s.detach() + 3.0, temperature)  # shifts change no softmax
    assert loss.item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, s)
    assert float(gradient.abs().max()) < 1e-5
    assert float(logit_loss(s, s.detach())) == 0


def test_by_the_formula() -> None:
    s, t = logits()
    T = 3.0
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    expected = T**2 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft_target_loss(s, t, T), expected)


def test_temperature_one_is_cross_entropy_with_soft_labels() -> None:
    s, t = (v.requires_grad_() for v in logits())
    p = t.detach().softmax(1)
    ours = torch.autograd.grad(soft_target_loss(s, t.detach(), 1.0), s)[0]
    theirs = torch.autograd.grad(F.cross_entropy(s, p), s)[0]
    torch.testing.assert_close(ours, theirs)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(
        soft_target_loss(s, t.detach(), 1.0), F.cross_entropy(s, p) - entropy
    )


def test_high_temperature_matches_logits() -> None:
    s, t = (v - v.mean(1, keepdim=True) for v in logits())
    s = s.requires_grad_()
    warm = torch.autograd.grad(soft_target_loss(s, t, 1e3), s)[0]
    # (z_s - z_t) / N for each example, averaged over the batch
    torch.testing.assert_close(warm, (s - t).detach() / 7 / 5, rtol=1e-2, atol=1e-4)
    cold = torch.autograd.grad(logit_loss(s, t), s)[0]
    torch.testing.assert_close(warm, cold, rtol=1e-2, atol=1e-4)


def test_pixels_are_averaged() -> None:
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    by_pixel = [
        soft_target_loss(s[:, :, i, j], t[:, :, i, j], 2.0) for i in range(4) for j in range(5)
    ]
    torch.testing.assert_close(soft_target_loss(s, t, 2.0), torch.stack(by_pixel).mean())


def test_outputs_that_are_no_classes_are_matched_themselves() -> None:
    s, t = torch.randn(4, 1), torch.randn(4, 1)
    torch.testing.assert_close(imitation_loss(s, t, 4.0), 0.5 * F.mse_loss(s, t))
    s, t = logits()
    torch.testing.assert_close(imitation_loss(s, t, 4.0), soft_target_loss(s, t, 4.0))
