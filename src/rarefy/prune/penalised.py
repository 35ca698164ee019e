# SPDX-License-Identifier: Apache-2.0
"""Training under a penalty, by its gradient in the loss or by its proximal map after every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from rarefy.loops.losses import imitation_loss
from rarefy.loops.modes import evaluating
from rarefy.loops.optimise import Training, rate_factor
from rarefy.loops.repair import loss_of, part_seed, remember, teacher_share, watch_over
from rarefy.loops.train import train
from rarefy.prune import penalties
from rarefy.prune.penalty_groups import Penalised, only
from rarefy.step import Context


class Penalty(Protocol):
    """What pulls weights towards zero."""

    def term(self, progress: float) -> Tensor:
        """What is added to the loss at `progress` of the training, in [0, 1]."""
        ...

    def shrink(self, rate: float, progress: float) -> None:
        """The proximal map after a step of length `rate`, in place."""
        ...


@dataclass(frozen=True)
class Entries:
    """Penalises every entry of some tensors alone.

    Attributes:
        tensors: parameters.
        strength: factor of the penalty.
        value: of a tensor.
        prox: its proximal map.
    """

    tensors: Sequence[Tensor]
    strength: float
    value: Callable[[Tensor], Tensor] = penalties.l1
    prox: penalties.Map = penalties.l1_prox

    def term(self, progress: float) -> Tensor:
        """strength · Σ value(w)."""
        return self.strength * torch.stack([self.value(w) for w in self.tensors]).sum()

    @torch.no_grad()
    def shrink(self, rate: float, progress: float) -> None:
        """w ← prox(w, rate · strength)."""
        for w in self.tensors:
            w.copy_(self.prox(w, rate * self.strength))


@dataclass(frozen=True)
class GroupLasso:
    """Penalises the norms of groups.

    Attributes:
        groups: of weights.
        strength: factor of the penalty.
    """

    groups: Penalised
    strength: float

    def sizes(self) -> Tensor:
        """|g| of every group."""
        return penalties.group_sizes(self.groups.parts, self.groups.number)

    def squares(self) -> Tensor:
        """‖w_g‖² of every group."""
        return penalties.group_squares(self.groups.parts, self.groups.number)

    def term(self, progress: float) -> Tensor:
        """strength · Σ_g sqrt(|g|) ‖w_g‖."""
        return self.strength * penalties.group_lasso(self.squares(), self.sizes())

    @torch.no_grad()
    def shrink(self, rate: float, progress: float) -> None:
        """w_g ← w_g · max(0, 1 - rate · strength · sqrt(|g|) / ‖w_g‖)."""
        gains = penalties.group_gains(self.squares(), self.sizes(), rate * self.strength)
        for part in self.groups.parts:
            part.tensor.mul_(part.gains(gains))


@dataclass
class Growing:
    """An L2 penalty whose factor grows while the network trains, on units chosen to go.

    Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, 2021, arXiv 2012.09243: the units with
    the smallest norm are chosen at once (GReg-1), or after a part of the training in which the factor grew
    on all of them, up to a hundredth of the ceiling, so that curvature tells them apart (GReg-2).

    Attributes:
        groups: one for each unit.
        strength: ceiling of the factor.
        choose: marks the units that go, bool (number,), by the weights of the moment.
        start: progress at which they are chosen; 0 for at once.
        chosen: the units, once chosen.
    """

    groups: Penalised
    strength: float
    choose: Callable[[], Tensor]
    start: float = 0.0
    chosen: Penalised | None = field(default=None, repr=False)

    def now(self, progress: float) -> tuple[Penalised, float]:
        """The penalised units and the factor at `progress`."""
        if progress < self.start:
            return self.groups, penalties.grown(progress / self.start, 0.0, self.strength / 100)
        if self.chosen is None:
            self.chosen = only(self.groups, self.choose())
        return self.chosen, penalties.grown(progress, self.start, self.strength)

    def term(self, progress: float) -> Tensor:
        """factor · ½ Σ ‖w‖² over the units."""
        groups, factor = self.now(progress)
        return 0.5 * factor * penalties.group_squares(groups.parts, groups.number).sum()

    @torch.no_grad()
    def shrink(self, rate: float, progress: float) -> None:
        """w ← w / (1 + rate · factor) for the units' weights."""
        groups, factor = self.now(progress)
        gains = torch.full((groups.number,), 1 / (1 + rate * factor), dtype=torch.float64)
        for part in groups.parts:
            part.tensor.mul_(part.gains(gains))

    @torch.no_grad()
    def vanish(self) -> None:
        """Sets what is left of the chosen units to zero."""
        groups, _ = self.now(1.0)
        for part in groups.parts:
            part.tensor.mul_(part.gains(torch.zeros(groups.number, dtype=torch.float64)))


def train_penalised(
    model: nn.Module,
    context: Context,
    settings: Training,
    penalty: Penalty,
    *,
    prox: bool = True,
    alpha: float | None = None,
    label: str = "sparsify",
) -> nn.Module:
    """Trains on the task's loss and a penalty by SGD; the curve is added to ``context.record["training"]``.

    A proximal step has the length r / (1 - momentum), the distance that SGD with momentum goes in the long
    run along a gradient of one: so both ways come to rest where the slope of the loss equals the penalty's.

    Args:
        model: trained in place.
        context: task, teacher and seed.
        settings: hyper-parameters; the optimiser must be SGD.
        penalty: what pulls.
        prox: whether its proximal map is taken after each step, or its gradient is followed with the loss's.
        alpha: share of the teacher's answers in the loss; default: 0 with labels, 1 without.
        label: names the training in the progress bar, the record and the checkpoint.

    Returns:
        The same network, in eval mode.
    """
    task, teacher = context.task, context.teacher
    share = teacher_share(alpha, task, label)
    now = [0.0]

    def shrink() -> None:
        rate = settings.rate * rate_factor(settings, now[0]) / (1 - settings.momentum)
        penalty.shrink(rate, now[0])

    watch = watch_over(context, label, shrink if prox else None)
    seed = part_seed(context.seed, label)
    with evaluating(teacher):
        for batch in train(
            model, task.batches("train"), settings, seed=seed, labelled=task.labelled, watch=watch
        ):
            now[0] = batch.progress
            loss = loss_of(batch, task, teacher, share, 4.0, imitation_loss)
            batch.minimise(loss if prox else loss + penalty.term(batch.progress).to(loss))
    remember(context.record, label, watch.history)
    return model
