# SPDX-License-Identifier: Apache-2.0
"""A student together with what it needs only while it learns."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.distill.attended import Attended, attending
from rarefy.distill.lessons import LESSONS
from rarefy.distill.pairing import Pair, found_pairs, named_pairs, outline
from rarefy.distill.shown import Shown
from rarefy.errors import ModelError
from rarefy.loops.features import Features, features
from rarefy.loops.modes import evaluating
from rarefy.task import Inputs, call, logits_of


@dataclass(frozen=True)
class Told:
    """What the teachers have shown of a batch.

    Attributes:
        references: their outputs.
        seen: their features.
        attentions: their attention calls.
        labels: class indices (B,), or None.
    """

    references: list[Tensor]
    seen: list[Features]
    attentions: list[list[Attended]]
    labels: Tensor | None = None


class Taught(nn.Module):
    """Runs the student; with what its teachers told, it also says how far the student is from it.

    Args:
        student: the network that learns.
        weights: factor of each lesson, by name.
        pairs: of modules, by lesson and by teacher.

    Attributes:
        lessons: adapters, discriminators, memories; empty until `build`.
    """

    def __init__(
        self,
        student: nn.Module,
        weights: Mapping[str, float],
        pairs: Mapping[str, list[list[Pair]]],
    ) -> None:
        super().__init__()
        self.student, self.lessons = student, nn.ModuleDict()
        self.weights, self.pairs = dict(weights), dict(pairs)
        self.attentive = any(LESSONS[name].sees == "attention" for name in weights)

    @property
    def names(self) -> list[str]:
        """The student's modules that are looked at."""
        every = (s for pairs in self.pairs.values() for own in pairs for _, s in own)
        return list(dict.fromkeys(every))

    def teachers_names(self, number: int) -> list[str]:
        """The modules of one teacher that are looked at."""
        every = (t for pairs in self.pairs.values() for t, _ in pairs[number])
        return list(dict.fromkeys(every))

    def forward(self, *args: Any, told: Told | None = None, **kwargs: Any) -> Any:
        """The student's outputs; with `told` also the weighted sum of the lessons' losses."""
        if told is None:
            return self.student(*args, **kwargs)
        outputs, seen, attention = self.look(args, kwargs)
        answers = logits_of(outputs)
        losses = [
            self.weights[name] * lesson(self.shown(name, told, answers, seen, attention))
            for name, lesson in self.lessons.items()
        ]
        return outputs, torch.stack(losses).sum()

    def look(self, args: Any, kwargs: Any) -> tuple[Any, Features, list[Attended]]:
        """The student's outputs, features and attention calls."""
        with ExitStack() as stack:
            seen = stack.enter_context(features(self.student, self.names))
            attention: list[Attended] = []
            if self.attentive:
                attention = stack.enter_context(attending())
            return self.student(*args, **kwargs), seen, attention

    def shown(
        self, name: str, told: Told, answers: Tensor, seen: Features, attention: list[Attended]
    ) -> Shown:
        """What one lesson gets to see."""
        pairs = [
            [(seen[s], theirs[t]) for t, s in own]
            for own, theirs in zip(self.pairs[name], told.seen, strict=True)
        ]
        references, attentions = told.references, told.attentions
        return Shown(pairs, answers, references, told.labels, attention, attentions)

    @torch.no_grad()
    def build(self, inputs: Inputs, told: Told) -> None:
        """Makes the lessons from what an example shows, with draws from torch's generator."""
        with evaluating(self.student):
            outputs, seen, attention = call(lambda *a, **k: self.look(a, k), inputs)
        answers = logits_of(outputs)
        self.check_seen(seen, told)
        for name in self.weights:
            shown = self.shown(name, told, answers, seen, attention)
            self.lessons[name] = LESSONS[name].build(shown)
        self.lessons.to(answers.device)

    def check_seen(self, seen: Features, told: Told) -> None:
        """Refuses modules that exist and do not run, or give no tensor.

        Raises:
            ModelError: with their name.
        """
        sides = [("student", self.names, seen)]
        sides += [("teacher", self.teachers_names(n), x) for n, x in enumerate(told.seen)]
        for whose, names, found in sides:
            for name in names:
                if name not in found or found[name].dim() < 2:
                    raise ModelError(
                        f"pairs: module '{name}' of the {whose} gives no features when the network runs; "
                        "name one that does"
                    )


def lesson_pairs(
    names: Sequence[str],
    student: nn.Module,
    teachers: Sequence[nn.Module],
    examples: tuple[Inputs, Inputs],
    pairs: Mapping[str, str] | None,
) -> dict[str, list[list[Pair]]]:
    """The pairs of every lesson with every teacher.

    Args:
        names: of the lessons.
        student, teachers: run once if pairs have to be found.
        examples: the student's and the teachers'.
        pairs: teacher's module to student's module, for all lessons; None to find them.

    Raises:
        ModelError: there is no such module, or nothing to pair.
    """
    silent = [n for n in names if LESSONS[n].sees in ("answers", "attention")]
    found: dict[str, list[list[Pair]]] = {n: [[] for _ in teachers] for n in silent}
    looking = [n for n in names if n not in silent]
    if not looking:
        return found
    if pairs is not None:
        given = [named_pairs(pairs, teacher, student) for teacher in teachers]
        return found | dict.fromkeys(looking, given)
    mine = outline(student, examples[0])
    theirs = [outline(teacher, examples[1]) for teacher in teachers]
    for name in looking:
        found[name] = [found_pairs(LESSONS[name].sees, t, mine) for t in theirs]
    return found
