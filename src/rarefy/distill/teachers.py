# SPDX-License-Identifier: Apache-2.0
"""Who teaches: the original, other trained networks, the student as it was; and how many become one answer.

You, Xu, Xu, Tao: Learning from Multiple Teacher Networks, KDD 2017 (the mean of softened probabilities);
Shen, Wang, Song, Sun, Song: Customizing Student Networks From Heterogeneous Teachers via Adaptive Knowledge
Amalgamation, 2019, arXiv 1908.07121 (the surest teacher of each example).
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.answers import Answers
from rarefy.distill.attended import Attended, attending
from rarefy.errors import ModelError, RecipeError, described
from rarefy.loops.features import Features, features
from rarefy.step import Context
from rarefy.task import Inputs, call, logits_of, tensors_of
from rarefy.zoo.models import load_model

How: TypeAlias = Literal["probabilities", "logits", "surest"]
NEVER = -1e4  # the logit of a class that a teacher does not know; finite, so that 0 · log 0 stays 0


def mean_probabilities(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits whose softmax at `temperature` is the mean of the teachers' softened probabilities."""
    each = torch.stack([F.log_softmax(a.float() / temperature, dim=1) for a in answers])
    return temperature * (each.logsumexp(0) - torch.log(torch.tensor(float(len(answers)))))


def mean_logits(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """The mean of the teachers' outputs; the temperature plays no part."""
    return torch.stack([a.float() for a in answers]).mean(0)


def ambiguity(answers: Tensor, temperature: float) -> Tensor:
    """The entropy of the softened probabilities, (B,); Shen et al., equation 2."""
    log_p = F.log_softmax(answers.float() / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1)


def surest(answers: Sequence[Tensor], temperature: float) -> Tensor:
    """For each example the probabilities, as logits, of the teacher that is least ambiguous."""
    doubts = torch.stack([ambiguity(a, temperature) for a in answers])  # (teachers, B)
    logs = torch.stack([F.log_softmax(a.float() / temperature, dim=1) for a in answers])
    best = doubts.argmin(0)
    return temperature * logs[best, torch.arange(len(best), device=best.device)]


COMBINED = {"probabilities": mean_probabilities, "logits": mean_logits, "surest": surest}


def placed(answers: Tensor, classes: Sequence[int], total: int) -> Tensor:
    """A teacher's answers (B, own classes) at their places among all of the student's (B, total)."""
    whole = answers.new_full((len(answers), total), NEVER)
    whole[:, list(classes)] = answers
    return whole


def load_teacher(spec: str, student: nn.Module, context: Context) -> nn.Module:
    """A network that teaches, in eval mode, on the student's device.

    Args:
        spec: ``"original"``, ``"self"`` (the student as it is now) or a MODEL as on the command line.
        student: before its training.
        context: holds the original.

    Raises:
        ModelError: there is no such network.
    """
    if spec == "original":
        return context.teacher
    found = copy.deepcopy(student) if spec == "self" else load_model(spec).float()
    return found.to(context.device).eval().requires_grad_(False)


@torch.no_grad()
def check_runs(network: nn.Module, who: str, inputs: Inputs) -> None:
    """Tries a network that the user named on a few inputs.

    Raises:
        ModelError: it fails on them, whatever the reason.
    """
    try:
        call(network, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(inputs))
        raise ModelError(
            f"{who} does not run on the task's inputs ({shapes}): {described(error)}; take one made for them"
        ) from error


@dataclass
class Faculty:
    """All teachers of one student.

    Attributes:
        networks: in eval mode; none of them changes.
        how: their answers become one.
        classes: the student's classes that each teacher's outputs stand for; None if they are the same.
        total: the student's classes.
        answers: what is kept of each on disk, or None.
        names: modules of each whose features are looked at.
        attentive: whether attention is looked at.
    """

    networks: list[nn.Module]
    how: How = "probabilities"
    classes: tuple[tuple[int, ...], ...] | None = None
    total: int = 0
    answers: list[Answers] | None = None
    names: list[list[str]] = field(default_factory=list)
    attentive: bool = False

    @torch.no_grad()
    def teach(self, inputs: Inputs) -> tuple[list[Tensor], list[Features], list[list[Attended]]]:
        """Every teacher's outputs, features and attention on a batch."""
        references, seen, attentions = [], [], []
        for number, network in enumerate(self.networks):
            names = self.names[number] if self.names else []
            if self.answers and not names and not self.attentive:
                ask = self.answers[number].fetch
                given = ask(inputs, lambda n=network: logits_of(call(n, inputs)))  # type: ignore[misc]
                found, calls = Features(), list[Attended]()
            else:
                with ExitStack() as stack:
                    found = stack.enter_context(features(network, names))
                    calls = stack.enter_context(attending()) if self.attentive else []
                    given = logits_of(call(network, inputs))
            references.append(self.at_its_place(number, given))
            seen.append(found)
            attentions.append(calls)
        return references, seen, attentions

    def at_its_place(self, number: int, answers: Tensor) -> Tensor:
        """A teacher's answers as ones about the student's classes."""
        if self.classes is None:
            return answers
        return placed(answers, self.classes[number], self.total)

    def target(self, references: Sequence[Tensor], temperature: float) -> Tensor:
        """What the student is to imitate."""
        if len(references) == 1:
            return references[0]
        return COMBINED[self.how](references, temperature)

    def check(self, answers: Tensor, given: Sequence[Tensor]) -> None:
        """Compares shapes on the example.

        Args:
            answers: the student's.
            given: the teachers' own, before they are put at their places.

        Raises:
            ModelError: a teacher has another output shape.
            RecipeError: `classes` does not fit the teachers.
        """
        if self.classes is not None and len(self.classes) != len(given):
            raise RecipeError(
                f"distill: classes names {len(self.classes)} lists of classes for {len(given)} teachers; "
                "write one list for each"
            )
        for number, reference in enumerate(given):
            told = tuple(reference.shape)
            if self.classes is None and told != tuple(answers.shape):
                raise ModelError(
                    f"teacher {number + 1} gives outputs of shape {told} and the student of shape "
                    f"{tuple(answers.shape)}; take a teacher with the same outputs, or name with `classes` "
                    "which of the student's each of its outputs is"
                )
            if self.classes is None:
                continue
            own = self.classes[number]
            if len(told) != 2 or len(own) != told[1] or max(own) >= self.total:
                raise RecipeError(
                    f"distill: classes={list(own)} do not fit teacher {number + 1} with outputs of shape "
                    f"{told} and a student of {self.total} classes"
                )
