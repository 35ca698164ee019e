# SPDX-License-Identifier: Apache-2.0
"""What a student and its teachers show on one batch, as losses get to see it."""

from dataclasses import dataclass, field

from torch import Tensor

from rarefy.distill.attended import Attended


@dataclass(frozen=True)
class Shown:
    """One batch, seen by the student and by every teacher.

    Attributes:
        pairs: the student's and the teacher's features of paired layers: by teacher, then in order.
        answers: the student's outputs.
        references: the teachers' outputs, one a teacher.
        labels: class indices (B,), or None.
        attention: the student's attention calls, in order.
        attentions: the teachers' attention calls: by teacher, then in order.
    """

    pairs: list[list[tuple[Tensor, Tensor]]]
    answers: Tensor
    references: list[Tensor]
    labels: Tensor | None = None
    attention: list[Attended] = field(default_factory=list)
    attentions: list[list[Attended]] = field(default_factory=list)

    @property
    def flat(self) -> list[tuple[Tensor, Tensor]]:
        """All pairs of all teachers."""
        return [pair for pairs in self.pairs for pair in pairs]

    @property
    def vectors(self) -> list[tuple[Tensor, Tensor]]:
        """The last pair of every teacher as vectors, (B, d) each."""
        return [(vector_of(pairs[-1][0]), vector_of(pairs[-1][1])) for pairs in self.pairs]


def vector_of(x: Tensor) -> Tensor:
    """One vector for each example: maps (B, C, H, W) and tokens (B, T, C) are averaged over their places."""
    if x.dim() <= 2:
        return x.float().reshape(len(x), -1)
    return x.float().mean(1) if x.dim() == 3 else x.float().flatten(2).mean(2)
