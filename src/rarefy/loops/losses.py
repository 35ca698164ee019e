# SPDX-License-Identifier: Apache-2.0
"""What a network loses when it answers or sees differently from its teacher: pure functions on tensors."""

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


def cosine_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """1 - cosine of the outputs, a mean over the examples; for embeddings. The temperature plays no part.

    Args:
        student, teacher: (B, d, …), compared as vectors.
    """
    a, b = student.float().flatten(1), teacher.float().flatten(1)
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


def attention(x: Tensor) -> Tensor:
    """Σ_c x² at every position, each example's map of length one: (B, C, *space) to (B, positions)."""
    return F.normalize(x.float().square().sum(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of attention maps, a mean over the examples; channels may differ in number.

    Zagoruyko, Komodakis: Paying More Attention to Attention, 2017, arXiv 1612.03928, equation 2.

    Args:
        student, teacher: (B, C, *space).
    """
    return (attention(student) - attention(teacher)).square().sum(1).mean()


def similarity(x: Tensor) -> Tensor:
    """How alike the examples of a batch are, each row of length one: (B, …) to (B, B)."""
    rows = x.float().flatten(1)
    return F.normalize(rows @ rows.mT, dim=1)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the rows that tell how alike examples are, a mean over the examples.

    Tung, Mori: Similarity-Preserving Knowledge Distillation, 2019, arXiv 1907.09682, equation 4 times B.

    Args:
        student, teacher: (B, …), of any sizes.
    """
    return (similarity(student) - similarity(teacher)).square().sum(1).mean()


def alike_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`attention_loss` of maps (three axes or more), `similarity_loss` of vectors.

    Args:
        student, teacher: (B, C, …); C may differ.
    """
    compare = attention_loss if student.dim() > 2 else similarity_loss
    return compare(student, teacher)
