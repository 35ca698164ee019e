# SPDX-License-Identifier: Apache-2.0
"""A student learns from the answers, the features and the attention of one or several teachers.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. The loss is
alpha · T² · KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) · task loss + Σ weight · lesson; networks
whose outputs are no classes imitate the outputs themselves (Ba, Caruana 2014, arXiv 1312.6184). What else can
be learnt stands in `rarefy.distill.lessons`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.distill.answers import Answers
from rarefy.distill.lessons import LESSONS
from rarefy.distill.shrinking import Shrinking
from rarefy.distill.taught import Taught, Told, lesson_pairs
from rarefy.distill.teach import Plan, is_classes, teach, views
from rarefy.distill.teachers import Faculty, How, check_runs, load_teacher
from rarefy.errors import RecipeError, TaskError
from rarefy.loops.losses import (
    Imitation,
    cosine_loss,
    imitation_loss,
    logit_loss,
    soft_target_loss,
)
from rarefy.loops.modes import evaluating
from rarefy.loops.repair import part_seed, teacher_share
from rarefy.loops.training import TrainedStep
from rarefy.step import Context, Count, Fraction, Positive
from rarefy.task import Inputs, call, logits_of, move, split
from rarefy.zoo.models import load_model

ANSWERS: dict[str, Imitation] = {
    "soft-targets": soft_target_loss,
    "logits": logit_loss,
    "cosine": cosine_loss,
}
Name: TypeAlias = Literal[
    "soft-targets", "logits", "cosine", "hints", "attention", "selectivity", "information", "direction",
    "relations", "distances", "angles", "similarity", "correlation", "triplets", "affinity", "contrastive",
    "complementary", "adversarial", "hidden-states", "embeddings", "attention-maps", "value-relations",
]  # fmt: skip
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Classes: TypeAlias = tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]


def annealed(start: float, progress: float) -> float:
    """The temperature at `progress` in [0, 1]: from `start` linearly to 1."""
    return start + (1 - start) * min(max(progress, 0.0), 1.0)


def worth(answers: Tensor, target: Tensor, temperature: float = 4.0) -> Tensor:
    """What each example can still teach, (B,): softened KL(teacher || student), or the squared difference."""
    if answers.dim() == 2 and answers.shape[1] > 1:
        log_q, log_p = (F.log_softmax(x.float() / temperature, dim=1) for x in (answers, target))
        return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    return (answers.float() - target.float()).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Distill(TrainedStep):
    """Trains on what teachers give; with labels that is a share of the loss, without all of it.

    Attributes:
        epochs: passes over the training data.
        rate: highest learning rate.
        temperature: T; softens both answers.
        temperature_schedule: ``"fixed"``, or ``"annealed"`` linearly to 1.
        alpha: share of the teachers' answers in the loss, the labels have the rest; default: without labels
            1, with labels 0.7, or 0 if `loss` names lessons but no way to compare answers.
        loss: what is learnt: a name, several, or names with weights. Answers: ``"soft-targets"``,
            ``"logits"`` (half the squared difference), ``"cosine"``; the others are lessons on features or
            attention (see `rarefy.distill.lessons.LESSONS`), added to answers and labels. Default: the
            answers, in the way that suits them, classes or not.
        pairs: the teacher's module to the student's, for lessons on features; ``"fc:input"`` stands for what
            `fc` is given. Default: found by name and size.
        teachers: ``"original"``, ``"self"`` (the student as it comes), or a MODEL as on the command line, as
            ``"zoo:resnet20@cifar10"`` or ``"path/file.py:callable"``; one or several.
        combine: how several teachers give one answer: the mean of softened ``"probabilities"`` or of
            ``"logits"``, or for each example the ``"surest"``.
        classes: for each teacher which of the student's classes its outputs are, if not all in order.
        student: a MODEL that is trained in the place of the network at hand.
        paired: whether training inputs are pairs, the first for the student, the second for the teachers.
        subset: share of the training examples that the last epoch uses; those stay that have most to teach.
        cache: folder in which answers are kept, so that a teacher is asked only once.
        largest: how many logits of each answer are kept there; default: all.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    temperature: Positive = 4.0
    temperature_schedule: Literal["fixed", "annealed"] = "fixed"
    alpha: Fraction | None = None
    loss: Name | tuple[Name, ...] | dict[Name, Positive] | None = None
    pairs: dict[str, str] | None = None
    teachers: str | tuple[str, ...] = "original"
    combine: How = "probabilities"
    classes: Classes | None = None
    student: str | None = None
    paired: bool = False
    subset: Share = 1.0
    cache: str | None = None
    largest: Count | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.alpha < 1:
            object.__setattr__(self, "needs", self.needs | {"labels"})
        for name in ("loss", "teachers", "pairs", "classes"):
            value = getattr(self, name)
            if value is not None and not value:
                raise RecipeError(f"distill: {name}={value!r} names nothing; leave the field out")
        if self.classes is not None and set(self.answers) - {"soft-targets"}:
            raise RecipeError(
                "distill: classes place a teacher's probabilities among the student's, so answers can only "
                "be compared as soft-targets; write loss: soft-targets"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Every loss with its factor."""
        if isinstance(self.loss, Mapping):
            return {str(name): weight for name, weight in self.loss.items()}
        names = (self.loss,) if isinstance(self.loss, str) else self.loss or ()
        return {n: LESSONS[n].weight if n in LESSONS else 1.0 for n in names}

    @property
    def answers(self) -> dict[str, float]:
        """The ways in which answers are compared, with their factors."""
        return {n: w for n, w in self.weights.items() if n in ANSWERS}

    def at(self, progress: float) -> float:
        """The temperature at `progress` of the training."""
        fixed = self.temperature_schedule == "fixed"
        return self.temperature if fixed else annealed(self.temperature, progress)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place; masks, codebooks and grids stay on.

        Raises:
            ModelError: a teacher or a paired module that does not exist or does not fit.
        """
        if self.student is not None:
            model = load_model(self.student).float().to(context.device)
        faculty, taught = self.meet(model, context)
        compared = [(w, ANSWERS[n]) for n, w in self.answers.items()]
        compared = compared or ([] if self.weights else [(1.0, imitation_loss)])
        alpha = self.alpha
        if alpha is None and context.task.labelled:
            alpha = 0.7 if compared else 0.0
        share = teacher_share(alpha, context.task, self.key())
        batches = context.task.batches("train")
        worthy = worth if self.subset < 1 else None
        if worthy:
            batches = Shrinking(batches, self.subset, self.epochs)
        plan = Plan(faculty, share, compared, self.at, self.paired, worthy)
        return teach(taught, context, self.training(), plan, batches)

    def meet(self, model: nn.Module, context: Context) -> tuple[Faculty, Taught]:
        """Loads the teachers, pairs them with the student and builds the lessons, all on the example."""
        specs = (self.teachers,) if isinstance(self.teachers, str) else self.teachers
        networks = [load_teacher(spec, model, context) for spec in specs]
        mine, theirs, labels = self.example(context)
        for spec, network in zip(specs, networks, strict=True):
            if spec not in ("original", "self"):
                check_runs(network, f"teacher '{spec}'", theirs)
        if self.student is not None:
            check_runs(model.eval(), f"student '{self.student}'", mine)
        weights = {n: w for n, w in self.weights.items() if n in LESSONS}
        pairs = lesson_pairs(list(weights), model, networks, (mine, theirs), self.pairs)
        taught = Taught(model, weights, pairs)
        context.record["pairs"] = {n: [list(map(list, own)) for own in p] for n, p in pairs.items()}
        names = [taught.teachers_names(n) for n in range(len(networks))]
        with evaluating(model), torch.no_grad():
            answers = logits_of(call(model, mine))
        faculty = Faculty(
            networks, self.combine, None, answers.shape[1] if answers.dim() > 1 else 1,
            names=names, attentive=taught.attentive,
        )  # fmt: skip
        references, seen, attentions = faculty.teach(theirs)
        faculty.classes = self.classes
        faculty.check(answers, references)
        placed = [faculty.at_its_place(n, x) for n, x in enumerate(references)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(part_seed(context.seed, "lessons"))
            taught.build(mine, Told(placed, seen, attentions, labels))
        if self.cache is not None:
            faculty.answers = [Answers(Path(self.cache), n, self.largest) for n in networks]
        return faculty, taught

    def example(self, context: Context) -> tuple[Inputs, Inputs, Any]:
        """A few inputs as student and teachers see them, and class indices if the task has such."""
        task = context.task
        if not self.paired and not any(n in LESSONS for n in self.weights):
            inputs = move(task.example, context.device)
            return inputs, inputs, None
        inputs, targets = split(next(iter(task.batches("train"))), task.labelled)
        if self.paired and not (isinstance(inputs, tuple) and len(inputs) == 2):
            raise TaskError(
                f"distill: paired asks for training inputs (student's, teachers'), and task '{task.name}' "
                f"gives {type(inputs).__name__}; yield batches ((student's, teachers'), labels or None)"
            )
        mine, theirs = views(move(inputs, context.device), self.paired)
        return mine, theirs, move(targets, context.device) if is_classes(targets) else None
