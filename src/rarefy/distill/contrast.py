# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses: an example's own embedding in the other network is told from those of other examples.

Tian, Krishnan, Isola: Contrastive Representation Distillation, 2020, arXiv 1910.10699; Zhu, Tang, Chen, Yu,
Liu, Rong, Yang, Wang: Complementary Relation Contrastive Distillation, 2021, arXiv 2103.16367. Both papers
look examples up by number in a memory of the whole data set; here the memory is a queue of the latest
batches, so that streams and augmented data serve too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.shown import Shown


def contrastive_loss(own: Tensor, others: Tensor, valid: Tensor | None = None) -> Tensor:
    """-log (e^own / (e^own + Σ e^other)), a mean over the batch; log (N + 1) for a guess.

    log (N + 1) minus the loss bounds the mutual information of the two networks' embeddings from below, so it
    is at most log (N + 1). Van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive
    Coding, 2018, arXiv 1807.03748, equation 4; Tian et al. train a critic for each pair in its place.

    Args:
        own: (B,) similarities of the two networks' embeddings of one example, divided by the temperature.
        others: (B, N) those with other examples.
        valid: (B, N) which of the others count; default: all.
    """
    if valid is not None:
        others = others.masked_fill(~valid, -torch.inf)
    return (torch.cat([own.unsqueeze(1), others], 1).logsumexp(1) - own).mean()


def choice_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of finding each row's own column, (N, N), the diagonal; log N for a guess, 0 at best."""
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


class Contrastive(nn.Module):
    """`contrastive_loss` against a queue of earlier embeddings; with labels those of other classes alone.

    Args:
        shown: gives the numbers of features.
        size: of the embeddings.
        queue: embeddings that are remembered.
        temperature: divides similarities.
    """

    def __init__(
        self, shown: Shown, size: int = 64, queue: int = 512, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.mine = nn.ModuleList(nn.Linear(s.shape[1], size) for s, _ in shown.vectors)
        self.theirs = nn.ModuleList(nn.Linear(t.shape[1], size) for _, t in shown.vectors)
        memory = F.normalize(torch.randn(2, len(shown.pairs), queue, size), dim=3)
        self.register_buffer("memory", memory)  # of the student's side, then of the teachers'
        self.register_buffer("classes", torch.full((queue,), -1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))
        self.memory: Tensor
        self.classes: Tensor
        self.next: Tensor

    def forward(self, shown: Shown) -> Tensor:
        """The mean over both anchors and all teachers; the batch then enters the queue."""
        labels, losses, embedded = shown.labels, [], []
        valid = None if labels is None else labels.unsqueeze(1) != self.classes
        sides = zip(self.mine, self.theirs, shown.vectors, strict=True)
        for number, (mine, theirs, (x, y)) in enumerate(sides):
            s, t = F.normalize(mine(x), dim=1), F.normalize(theirs(y), dim=1)
            embedded.append(torch.stack([s, t]))
            own = (s * t).sum(1) / self.temperature
            for anchor, side in ((s, 1), (t, 0)):
                # a copy, since the queue moves on before the gradient is taken
                others = anchor @ self.memory[side, number].clone().mT / self.temperature
                losses.append(contrastive_loss(own, others, valid))
        self.remember(torch.stack(embedded, 1), labels)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def remember(self, embedded: Tensor, labels: Tensor | None) -> None:
        """Puts a batch (2, teachers, B, size) into the queue, over what has been there longest."""
        queue = self.memory.shape[2]
        count = min(embedded.shape[2], queue)
        places = (self.next + torch.arange(count, device=embedded.device)) % queue
        self.memory[:, :, places] = embedded[:, :, :count].to(self.memory)
        self.classes[places] = -1 if labels is None else labels[:count]
        self.next.copy_((self.next + count) % queue)


def relation_scores(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Similarities between relations seen by both networks and by the teacher alone, (B, d) to (B, B)."""
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).mT / temperature


class Complementary(nn.Module):
    """The relation from a teacher's anchor to the student's example is told from those to other examples.

    Some examples j of a batch serve as anchors. Of all relations t_j - t_k to an anchor, the own one, t_j -
    t_i, must be the nearest to t_j - s_i (Zhu et al., equations 4 to 9, on features). Relations pass through
    one small network that both sides share, so a student that equals its teacher has the least loss.

    Args:
        shown: gives the numbers of features.
        size: of the relations.
        anchors: how many examples of a batch serve as such.
    """

    def __init__(self, shown: Shown, size: int = 64, anchors: int = 4) -> None:
        super().__init__()
        self.anchors = anchors
        self.adapters, self.relations = nn.ModuleList(), nn.ModuleList()
        for s, t in shown.vectors:
            width, wide = s.shape[1], t.shape[1]
            self.adapters.append(nn.Identity() if width == wide else nn.Linear(width, wide))
            layers = nn.Linear(wide, size), nn.ReLU(), nn.Linear(size, size)
            self.relations.append(nn.Sequential(*layers))

    def forward(self, shown: Shown) -> Tensor:
        """The mean of `choice_loss` over the teachers."""
        losses = []
        for (s, t), adapter, relation in zip(
            shown.vectors, self.adapters, self.relations, strict=True
        ):
            s = adapter(s)
            for anchor in t[: self.anchors]:
                whole, mixed = relation(anchor - t), relation(anchor - s)
                losses.append(choice_loss(relation_scores(mixed, whole)))
        return torch.stack(losses).mean()
