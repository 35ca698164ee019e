# SPDX-License-Identifier: Apache-2.0
"""A discriminator tells teacher from student; the student learns to leave it guessing.

Xu, Hsu, Huang: Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with
Conditional Adversarial Networks, 2018, arXiv 1709.00513; the gradient is turned round on its way from the
discriminator into the student (Ganin, Lempitsky: Unsupervised Domain Adaptation by Backpropagation, 2015,
arXiv 1409.7495), so that one optimiser serves both sides.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.shown import Shown


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is negated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x itself."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient with the other sign."""
        return -gradients[0]


def reversed_gradient(x: Tensor) -> Tensor:
    """`x`, through which the gradient passes with the other sign."""
    result: Tensor = Reversal.apply(x)
    return result


def discrimination_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-log D(teacher) - log(1 - D(student)), halved; log 2 for a guess.

    Args:
        student, teacher: (B,) the discriminator's logits; large for what looks like the teacher's.
    """
    return 0.5 * (F.softplus(-teacher).mean() + F.softplus(student).mean())


class Adversary(nn.Module):
    """`discrimination_loss` of a small network on the answers, conditioned on the label where there is one.

    The loss is what the discriminator descends and the student climbs.

    Args:
        shown: gives the number of outputs.
        size: hidden units.
    """

    def __init__(self, shown: Shown, size: int = 64) -> None:
        super().__init__()
        self.outputs = shown.answers[0].numel()
        classes = shown.answers.shape[1] if shown.labels is not None else 0
        self.classes = classes if shown.answers.dim() == 2 else 0
        self.network = nn.Sequential(
            nn.Linear(self.outputs + self.classes, size), nn.LeakyReLU(0.2),
            nn.Linear(size, size), nn.LeakyReLU(0.2), nn.Linear(size, 1),
        )  # fmt: skip

    def judge(self, answers: Tensor, labels: Tensor | None) -> Tensor:
        """The logit of being the teacher's, (B,)."""
        x = answers.float().flatten(1)
        if self.classes:
            known = torch.zeros_like(x[:, : self.classes])
            if labels is not None:
                known = F.one_hot(labels, self.classes).to(x)
            x = torch.cat([x, known], 1)
        logits: Tensor = self.network(x)
        return logits.squeeze(1)

    def forward(self, shown: Shown) -> Tensor:
        """The mean over the teachers."""
        mine = self.judge(reversed_gradient(shown.answers), shown.labels)
        theirs = [self.judge(x, shown.labels) for x in shown.references]
        return torch.stack([discrimination_loss(mine, t) for t in theirs]).mean()
