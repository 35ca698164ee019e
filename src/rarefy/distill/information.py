# SPDX-License-Identifier: Apache-2.0
"""Variational information: how well the teacher's features can be told from the student's.

Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge Transfer, 2019,
arXiv 1904.05835, equations 5 and 6.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.adapters import Adapter
from rarefy.distill.shown import Shown

SMALLEST = 1e-4  # variance


def information_loss(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """-log q(teacher | student) of a normal distribution, without its constant, a mean over all entries.

    With a variance of one it is half the mean squared difference; for each channel the best variance is the
    mean squared residual.

    Args:
        mean, teacher: of one shape.
        variance: sigma², broadcast against them.
    """
    variance = variance.float()
    squared = (teacher.float() - mean.float()).square()
    return 0.5 * (variance.log() + squared / variance).mean()


class Information(nn.Module):
    """`information_loss` of all pairs, with a trained regression and a trained variance for each channel.

    Args:
        shown: gives the shapes.
    """

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        start = math.log(
            math.expm1(5.0 - SMALLEST)
        )  # a variance of five, as the authors start with
        self.adapters, self.raw = nn.ModuleList(), nn.ParameterList()
        for s, t in shown.flat:
            adapter = Adapter(s.shape, t.shape, channels="always")
            self.adapters.append(adapter)
            self.raw.append(nn.Parameter(torch.full((t.shape[adapter.axis],), start)))

    def forward(self, shown: Shown) -> Tensor:
        """The mean over pairs and teachers."""
        losses = []
        for (s, t), adapter, raw in zip(shown.flat, self.adapters, self.raw, strict=True):
            shape = [1] * t.dim()
            shape[adapter.axis] = -1  # type: ignore[index]
            variance = (F.softplus(raw) + SMALLEST).view(shape)
            losses.append(information_loss(adapter(s), t, variance))
        return torch.stack(losses).mean()
