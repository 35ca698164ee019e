# SPDX-License-Identifier: Apache-2.0
"""What a network loses when it answers differently from its teacher: pure functions on outputs."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F

Imitation: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL(softmax(teacher / T) || softmax(student / T)), averaged over examples and positions.

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.
    The factor T² keeps the gradient's size as T changes; for large T and zero-mean logits the loss
    becomes `logit_loss`.

    Args:
        student, teacher: (B, classes) or (B, classes, …) logits.
        temperature: T > 0.
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return temperature**2 * divergence.mean()


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Half the mean squared difference of the outputs; the temperature plays no part.

    Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, arXiv 1312.6184, equation 1.
    """
    return 0.5 * F.mse_loss(student.float(), teacher.float())


def imitation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """`soft_target_loss` for class scores (B, 2 or more), `logit_loss` for outputs of other shapes."""
    classes = student.dim() == 2 and student.shape[1] > 1
    return (soft_target_loss if classes else logit_loss)(student, teacher, temperature)
