# SPDX-License-Identifier: Apache-2.0
"""How much of each layer goes is searched: candidates are cut, their batch norms measured anew, and ranked.

Li, Wu, Su, Wang: EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, 2020,
arXiv 2007.02491. A cut network that still wears the batch-norm statistics of the whole one says little about
what fine-tuning will make of it; with statistics of its own it says much.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.export.inputs import first_examples
from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.loops.norms import reestimate_norms
from rarefy.loops.progress import bar, silent
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_allocation import Cuts, Limits, legal_counts, lowest_units
from rarefy.prune.channel_budget import Cost, cost_of, cut_for_a_while, smallest_cut, unprovable
from rarefy.prune.channel_criteria import unit_scores
from rarefy.prune.channel_selection import chosen_groups, left
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import Inputs, Task, move

LEVELS = 256
TRIES = 50  # draws that miss the budget in a row before it is given up
REACH = 0.15  # standard deviation of a greedy step, as a share


@dataclass(frozen=True)
class Candidate:
    """A network that was tried.

    Attributes:
        shares: of each group that were drawn, (groups,).
        counts: group → units taken.
        cost: afterwards.
        metric: on held-back data.
    """

    shares: Tensor
    counts: dict[str, int]
    cost: float
    metric: float


@dataclass(frozen=True)
class Space:
    """All cuts of a network that meet a budget.

    Attributes:
        model: as it came; left unchanged.
        coupling: of it.
        groups: that may be cut.
        scores: group → importance of its units.
        limits: on the share of a group that goes.
        cost: of a network.
        budget: largest cost.
    """

    model: nn.Module
    coupling: Coupling
    groups: Sequence[Group]
    scores: Mapping[str, Tensor]
    limits: Limits
    cost: Cost
    budget: float

    def cuts(self, shares: Tensor, level: int) -> Cuts:
        """The least important units when each group's share is scaled by level / `LEVELS`."""
        taken = (shares * level / LEVELS).tolist()
        wanted = {g.name: round(s * g.size) for g, s in zip(self.groups, taken, strict=True)}
        counts = legal_counts(self.coupling, self.groups, wanted, self.limits)
        return lowest_units(self.groups, self.scores, counts)

    def within(self, shares: Tensor) -> tuple[Cuts, float] | None:
        """The smallest cut in proportion to `shares` that meets the budget, and its cost; or None."""
        shares = shares * self.limits.largest / shares.max().clamp(min=1e-6)
        with cut_for_a_while(self.model, self.coupling, self.cuts(shares, LEVELS)):
            if self.cost(self.model) > self.budget:
                return None

        def cuts_at(level: int) -> Cuts:
            return self.cuts(shares, level)

        return smallest_cut(self.model, self.coupling, cuts_at, LEVELS, self.cost, self.budget)


def draw(size: int, generator: torch.Generator, near: Tensor | None = None) -> Tensor:
    """Shares of `size` groups: uniform in [0, 1], or a normal step away from others."""
    if near is None:
        return torch.rand(size, generator=generator)
    return (near + REACH * torch.randn(size, generator=generator)).clamp(0, 1)


def candidate_network(
    model: nn.Module, cuts: Cuts, example: Inputs, task: Task, examples: int
) -> nn.Module:
    """A cut copy with batch norms measured anew on `examples` training images; 0 leaves them as they are."""
    small = copy.deepcopy(model)
    coupling = couple(small, example)
    cut(small, coupling, [(coupling.group(g.name), units) for g, units in cuts], example)
    if examples:
        images = task.train if task.train is not None else task.batches("calibration")
        reestimate_norms(small, replace(task, calibration=images), examples)
    return small.eval()


@dataclass(frozen=True)
class EagleEye(Step):
    """Tries many ways to spread a budget over the layers and keeps the network that does best.

    Attributes:
        sparsity: share of `target` that goes at least.
        target: ``"macs"`` of one example, or ``"parameters"``.
        candidates: how many networks are tried.
        strategy: ``"random"`` shares of all groups, or ``"greedy"``: after a quarter of random ones, steps
            away from the best so far.
        criterion: by which units of a group go, see `rarefy.prune.channel_criteria.unit_scores`.
        largest: share of a group's units that may go at most.
        adapt: whether batch norms are measured anew before a candidate is judged.
        examples: training examples on which they are.
        layers, exclude: whose output channels go, see `rarefy.select.select`.
    """

    sparsity: OpenFraction = 0.5
    target: Literal["macs", "parameters"] = "macs"
    candidates: Count = 20
    strategy: Literal["random", "greedy"] = "random"
    criterion: Literal["l1", "l2", "geometric-median"] = "l1"
    largest: OpenFraction = 0.8
    adapt: bool = True
    examples: Count = 2048
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Draws, cuts, adapts, judges; returns the best candidate."""
        task, example = context.task, move(context.task.example, context.device)
        task.batches("validation")
        space = self.space(model, example, context)
        generator = torch.Generator().manual_seed(context.seed % 2**63)
        tried: list[Candidate] = []
        best: tuple[Candidate, nn.Module] | None = None
        with bar(self.key(), self.candidates, "network") as advance, silent():
            for number in range(self.candidates):
                explore = self.strategy == "random" or 4 * number < self.candidates
                near = None if explore or best is None else best[0].shares
                shares, cuts, cost = self.draw(space, generator, near)
                small = candidate_network(
                    model, cuts, example, task, self.examples if self.adapt else 0
                )
                metric = evaluate(small, task, "validation", reference=context.teacher).value
                counts = {g.name: len(units) for g, units in cuts}
                tried.append(Candidate(shares, counts, cost, metric))
                if best is None or task.metric.drop(best[0].metric, metric) < 0:
                    best = tried[-1], small
                advance(1, f"{task.metric.name} {best[0].metric:.4f}")
        assert best is not None
        context.record.update(report(tried, best[0]))
        return best[1]

    def space(self, model: nn.Module, example: Inputs, context: Context) -> Space:
        """What may be cut, what it costs, and how important its units are."""
        coupling = couple(model, example)
        groups, spared = chosen_groups(model, coupling, self.layers, self.exclude)
        scores = unit_scores(model, groups, self.criterion, context.task, 0, context.seed % 2**63)
        half = coupling.even({g.name: g.size // 2 for g in groups})
        trial = lowest_units(groups, scores, half)
        groups = left(coupling, groups, spared, unprovable(model, trial, example))
        context.record.update(spared=spared, barriers=coupling.barrier_lines)
        cost = cost_of(self.target, model, first_examples(example, 1))
        budget = (1 - self.sparsity) * cost(model)
        return Space(model, coupling, groups, scores, Limits(largest=self.largest), cost, budget)

    def draw(
        self, space: Space, generator: torch.Generator, near: Tensor | None
    ) -> tuple[Tensor, Cuts, float]:
        """Shares that meet the budget, the cuts that they come to and the cost.

        Raises:
            ModelError: none of many draws does.
        """
        for _ in range(TRIES):
            shares = draw(len(space.groups), generator, near)
            found = space.within(shares)
            if found is not None:
                return shares, *found
        raise ModelError(
            f"eagle-eye: none of {TRIES} draws saves {self.sparsity:.0%} of the {self.target} with "
            f"largest={self.largest:g}; ask for less, or raise largest"
        )


def report(tried: Sequence[Candidate], best: Candidate) -> dict[str, Any]:
    """What is remembered of a search."""
    rows = [{"cut": c.counts, "cost": c.cost, "metric": c.metric} for c in tried]
    return {"candidates": rows, "cut": best.counts}
