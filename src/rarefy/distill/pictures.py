# SPDX-License-Identifier: Apache-2.0
"""How far two pictures are apart to the eye: structure, features, style, smoothness; pure functions.

Ren, Wu, Xiao, Yang: Online Multi-Granularity Distillation for GAN Compression, 2021, arXiv 2108.06908,
equations 2 to 5; the similarity is that of Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, 2004.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def structural_similarity(x: Tensor, y: Tensor, window: int = 5, span: float = 2.0) -> Tensor:
    """The mean structural similarity (SSIM) of pictures, 1 for equal ones.

    Args:
        x, y: (B, C, H, W).
        window: side of the square over which moments are taken; smaller pictures take their own side.
        span: difference between the largest and the smallest value that a picture may have.
    """
    side = min(window, *x.shape[2:])

    def mean(v: Tensor) -> Tensor:
        return F.avg_pool2d(v.float(), side, 1)

    a, b = mean(x), mean(y)
    variance = mean(x * x) - a * a, mean(y * y) - b * b
    covariance = mean(x * y) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    return (luminance * (2 * covariance + c2) / (variance[0] + variance[1] + c2)).mean()


def gram(x: Tensor) -> Tensor:
    """Products of channels, as a mean over places: (B, C, H, W) to (B, C, C)."""
    rows = x.float().flatten(2)
    return rows @ rows.mT / rows.shape[2]


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return (x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()).float()


class FixedFeatures(nn.Module):
    """Two random convolutions that never change, as features of any pictures.

    Random features keep what pictures look like nearly as well as trained ones, and need no download.

    Args:
        channels: of the pictures.
        width: features of the first convolution, half of the second's.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = F.leaky_relu(self.first(x), 0.2)
        return [y, F.leaky_relu(self.second(y), 0.2)]


def picture_loss(student: Tensor, teacher: Tensor, look: nn.Module) -> Tensor:
    """1 - similarity + distance of features + distance of their Gram matrices + 0.01 · total variation.

    Args:
        student, teacher: (B, C, H, W); no gradient reaches the teacher's.
        look: gives a list of features of pictures.
    """
    teacher = teacher.detach()
    mine, theirs = look(student), look(teacher)
    losses = [1 - structural_similarity(student, teacher), 0.01 * total_variation(student)]
    for s, t in zip(mine, theirs, strict=True):
        losses += [F.l1_loss(s, t), F.mse_loss(gram(s), gram(t))]
    return torch.stack(losses).sum()
