# SPDX-License-Identifier: Apache-2.0
"""The explicit list of what a student may learn from its teachers besides their answers.

Every lesson is a module that is built from shapes and called with what a batch shows; its adapters,
discriminators and memories live as long as the training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rarefy.distill.adapters import Adapter
from rarefy.distill.adversary import Adversary
from rarefy.distill.attended import (
    Attended,
    attention_map_loss,
    layer_map,
    value_relation_loss,
)
from rarefy.distill.contrast import Complementary, Contrastive
from rarefy.distill.information import Information
from rarefy.distill.maps import direction_loss, hint_loss, selectivity_loss
from rarefy.distill.relations import (
    affinity_loss,
    agreement,
    angle_loss,
    closer,
    correlation_loss,
    distance_loss,
    relation_loss,
    triplet_loss,
)
from rarefy.distill.shown import Shown, vector_of
from rarefy.errors import ModelError
from rarefy.loops.losses import attention_loss, similarity_loss

Comparison: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Sees: TypeAlias = Literal["maps", "vectors", "both", "tokens", "embeddings", "answers", "attention"]


class Matched(nn.Module):
    """A loss between features of one shape, behind an adapter for every pair; the mean over all pairs."""

    def __init__(self, shown: Shown, loss: Comparison) -> None:
        super().__init__()
        self.loss = loss
        self.adapters = nn.ModuleList(Adapter(s.shape, t.shape) for s, t in shown.flat)

    def forward(self, shown: Shown) -> Tensor:
        pairs = zip(self.adapters, shown.flat, strict=True)
        return torch.stack([self.loss(adapter(s), t) for adapter, (s, t) in pairs]).mean()


class Spread(nn.Module):
    """A loss between maps whose channels may differ in number; space is interpolated where it differs."""

    def __init__(self, shown: Shown, loss: Comparison) -> None:
        super().__init__()
        self.loss = loss
        self.adapters = nn.ModuleList()
        for s, t in shown.flat:
            if s.dim() < 3:
                raise ModelError(
                    f"attention and selectivity compare maps, and a pair gives vectors of shape "
                    f"{tuple(s.shape[1:])}; pair convolutions or blocks, or take relations"
                )
            self.adapters.append(Adapter(s.shape, t.shape, channels="never"))

    def forward(self, shown: Shown) -> Tensor:
        losses = []
        for (s, t), adapter in zip(shown.flat, self.adapters, strict=True):
            s = adapter(s)
            s, t = (x.mT if adapter.axis == 2 else x for x in (s, t))
            losses.append(self.loss(s, t))
        return torch.stack(losses).mean()


class Related(nn.Module):
    """A loss on how the examples of a batch lie to each other, of the last pair; the mean over teachers."""

    def __init__(self, shown: Shown, loss: Comparison) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, shown: Shown) -> Tensor:
        return torch.stack([self.loss(s, t) for s, t in shown.vectors]).mean()


class Directed(nn.Module):
    """`direction_loss` of the last pair, behind an adapter."""

    def __init__(self, shown: Shown) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(s.shape, t.shape) for s, t in shown.vectors)

    def forward(self, shown: Shown) -> Tensor:
        pairs = zip(self.adapters, shown.vectors, strict=True)
        return torch.stack([direction_loss(adapter(s), t) for adapter, (s, t) in pairs]).mean()


class Ordered(nn.Module):
    """`triplet_loss` of the student's last layer against the vote of the teachers.

    Each teacher votes with the paired layer whose order of examples the other teachers share most.
    """

    def __init__(self, shown: Shown) -> None:
        super().__init__()

    def forward(self, shown: Shown) -> Tensor:
        seen = [[vector_of(t) for _, t in pairs] for pairs in shown.pairs]
        return triplet_loss(shown.vectors[0][0], agreed_layers(seen))


def agreed_layers(seen: list[list[Tensor]]) -> list[Tensor]:
    """Of every teacher's embeddings those whose order agrees best with all of the others'; the last on a tie.

    Args:
        seen: by teacher, then by layer, (B, d) each.
    """
    if len(seen) == 1:
        return [seen[0][-1]]
    tables = [[closer(x) for x in layers] for layers in seen]
    chosen = []
    for number, own in enumerate(tables):
        others = [t for n, layers in enumerate(tables) if n != number for t in layers]
        scores = [sum(float(agreement(mine, t)) for t in others) for mine in own]
        best = max(range(len(scores)), key=lambda i: (scores[i], i))
        chosen.append(seen[number][best])
    return chosen


class Affine(nn.Module):
    """`affinity_loss` of two paired embeddings, as of image and text; of one pair with itself."""

    def __init__(self, shown: Shown) -> None:
        super().__init__()

    def forward(self, shown: Shown) -> Tensor:
        losses = []
        for pairs in shown.pairs:
            (s1, t1), (s2, t2) = ((vector_of(s), vector_of(t)) for s, t in (pairs[0], pairs[-1]))
            losses.append(affinity_loss((s1, s2), (t1, t2)))
        return torch.stack(losses).mean()


class Attentive(nn.Module):
    """A loss between attention calls; each of the student's follows one of the teacher's, evenly spread.

    Raises:
        ModelError: one of the networks never calls torch's scaled dot-product attention.
    """

    def __init__(
        self, shown: Shown, loss: Callable[[Attended, Attended], Tensor], last: bool = False
    ) -> None:
        super().__init__()
        self.loss, self.last = loss, last
        for whose, calls in (("student", [shown.attention]), ("teacher", shown.attentions)):
            if not all(calls):
                raise ModelError(
                    f"the {whose} never calls scaled_dot_product_attention, so its attention can't be seen; "
                    "take hidden-states, or load it with attn_implementation='sdpa'"
                )

    def forward(self, shown: Shown) -> Tensor:
        losses, mine = [], shown.attention
        for theirs in shown.attentions:
            pairs = list(enumerate(layer_map(len(mine), len(theirs))))
            for i, j in pairs[-1:] if self.last else pairs:
                losses.append(self.loss(mine[i], theirs[j]))
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Lesson:
    """One thing to learn.

    Attributes:
        build: makes its module from what the example shows.
        sees: which features are paired for it: maps of several layers, the last embedding, both, hidden
            states of transformer blocks, their first input; or answers or attention, which need no pairs.
        weight: usual factor in the loss.
    """

    build: Callable[[Shown], nn.Module]
    sees: Sees
    weight: float


LESSONS: dict[str, Lesson] = {
    "hints": Lesson(lambda s: Matched(s, hint_loss), "maps", 1.0),
    "attention": Lesson(lambda s: Spread(s, attention_loss), "maps", 1.0),
    "selectivity": Lesson(lambda s: Spread(s, selectivity_loss), "maps", 5.0),
    "information": Lesson(Information, "maps", 1.0),
    "direction": Lesson(Directed, "vectors", 1.0),
    "relations": Lesson(lambda s: Related(s, relation_loss), "vectors", 25.0),
    "distances": Lesson(lambda s: Related(s, distance_loss), "vectors", 25.0),
    "angles": Lesson(lambda s: Related(s, angle_loss), "vectors", 50.0),
    "similarity": Lesson(lambda s: Related(s, similarity_loss), "vectors", 1.0),
    "correlation": Lesson(lambda s: Related(s, correlation_loss), "vectors", 10.0),
    "triplets": Lesson(Ordered, "both", 1.0),
    "affinity": Lesson(Affine, "vectors", 1.0),
    "contrastive": Lesson(Contrastive, "vectors", 0.5),
    "complementary": Lesson(Complementary, "vectors", 0.5),
    "adversarial": Lesson(Adversary, "answers", 0.1),
    "hidden-states": Lesson(lambda s: Matched(s, hint_loss), "tokens", 1.0),
    "embeddings": Lesson(lambda s: Matched(s, hint_loss), "embeddings", 1.0),
    "attention-maps": Lesson(lambda s: Attentive(s, attention_map_loss), "attention", 1.0),
    "value-relations": Lesson(
        lambda s: Attentive(s, value_relation_loss, last=True), "attention", 1.0
    ),
}
