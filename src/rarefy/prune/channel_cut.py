# SPDX-License-Identifier: Apache-2.0
"""One cut of a network's least important units: look, score, choose within the budget, cut, prove, repair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rarefy.export.inputs import first_examples
from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.loops.norms import reestimate_norms
from rarefy.loops.repair import part_seed
from rarefy.measure.counts import macs, parameters
from rarefy.measure.quality import batches_of
from rarefy.prune import channel_allocation as allocation
from rarefy.prune.channel_allocation import Cuts, Limits
from rarefy.prune.channel_budget import LATENCY_LEVELS, Cost, cost_of, smallest_cut, unprovable
from rarefy.prune.channel_criteria import unit_scores, unseen_reason
from rarefy.prune.channel_repair import fold_means, lost_means
from rarefy.prune.channel_selection import chosen_groups, left, shares_of
from rarefy.step import Context, Patterns
from rarefy.task import Inputs, move

LOCAL_LEVELS = 1024
ATTEMPTS = 3


@dataclass(frozen=True)
class Settings:
    """How units are chosen; the fields are those of `rarefy.prune.prune_channels.PruneChannels`.

    Attributes:
        grow: number of a round and the share at the end → the share that is gone after it.
    """

    sparsity: float
    target: str
    criterion: str
    allocation: str
    normalise: str
    per: str
    sparsities: Mapping[str, float] | None
    attention: str
    round_to: int
    largest: float
    repair: str
    examples: int
    layers: Patterns
    exclude: Patterns
    grow: Callable[[int, float], float]


@dataclass(frozen=True)
class Cutter:
    """What all rounds of a pruning share.

    Attributes:
        step: its settings.
        context: task, seed and record.
        example: the task's, on the model's device.
        coupling: of the network as it came; fits until the first cut.
        limits: with the sizes of its groups.
        cost: of a network, in the words of the step's target; None for units.
        first: the cost before.
        before: parameters and multiply-accumulates before.
        shares: group → share that goes, where each has its own.
    """

    step: Settings
    context: Context
    example: Inputs
    coupling: Coupling
    limits: Limits
    cost: Cost | None
    first: float
    before: tuple[int, int]
    shares: Mapping[str, float] | None = None

    @classmethod
    def start(cls, step: Settings, model: nn.Module, context: Context) -> "Cutter":
        """Looks at the network as it came.

        Raises:
            RecipeError, ModelError: see `rarefy.prune.channel_selection.chosen_groups`; the network fails.
        """
        example = move(context.task.example, context.device)
        coupling = couple(model, example, heads=step.attention == "heads")
        chosen_groups(model, coupling, step.layers, step.exclude)
        sizes = {g.name: g.size for g in coupling.groups}
        shares = shares_of(model, coupling, step.sparsities) if step.sparsities else None
        cost = None if step.target == "units" else cost_of(step.target, model, example)
        first = 0.0 if cost is None else 1.0 if step.target == "latency" else cost(model)
        before = (parameters(model), macs(model, example))
        limits = Limits(sizes, step.largest, step.round_to)
        return cls(step, context, example, coupling, limits, cost, first, before, shares)

    def cut(self, model: nn.Module, number: int) -> dict[str, Any]:
        """Makes the cut of a round in place; what was cut, what was spared and why, and the cost."""
        coupling = self.coupling if number == 1 else self.look(model)
        taken: dict[str, int] = {}
        spared: dict[str, str] = {}
        facts: dict[str, Any] = {"cut": taken, "spared": spared, "difference": 0.0}
        for attempt in range(ATTEMPTS):
            if attempt:
                coupling = self.look(model)
            cuts, cost = self.choose(model, coupling, number, spared)
            fold = self.step.repair == "bias"
            lost = lost_means(model, cuts, self.calibration()) if fold else {}
            outcome = cut(model, coupling, cuts, self.example)
            made = [(g, units) for g, units in cuts if g.name in outcome.cut]
            if fold:
                fold_means(model, coupling, made, lost)
            for name, units in outcome.cut.items():
                taken[name] = taken.get(name, 0) + units
            spared |= outcome.spared
            facts["difference"] = max(facts["difference"], outcome.difference)
            if cost is not None:
                facts[self.step.target] = cost
            if not outcome.spared or self.each_alone:
                break
        if self.step.repair == "norms":
            reestimate_norms(model, self.context.task, self.step.examples)
        return facts

    def look(self, model: nn.Module) -> Coupling:
        """The coupling of the network as it is now."""
        return couple(model, self.example, heads=self.step.attention == "heads")

    @property
    def each_alone(self) -> bool:
        """Whether a group's share does not depend on what becomes of the others."""
        return self.shares is not None or (self.cost is None and self.step.allocation == "local")

    def calibration(self) -> Any:
        """Calibration inputs, as many as the step looks at."""
        return batches_of(self.context.task, "calibration", self.step.examples)

    def choose(
        self, model: nn.Module, coupling: Coupling, number: int, spared: dict[str, str]
    ) -> tuple[Cuts, float | None]:
        """The units that go in a round, and the cost afterwards if there is a budget.

        Args:
            model: as it is now.
            coupling: of it.
            number: of the round, counted from 1.
            spared: group → why it is left alone; added to.
        """
        step = self.step
        groups, others = chosen_groups(model, coupling, step.layers, step.exclude, spared)
        spared |= others
        seed = part_seed(self.context.seed, f"scores {number}") % 2**63
        scores = unit_scores(model, groups, step.criterion, self.context.task, step.examples, seed)
        unseen = {g.name: unseen_reason(step.criterion) for g in groups if g.name not in scores}
        groups = left(coupling, groups, spared, unseen)
        if self.cost is not None:  # probes need cuts that can be made
            half = coupling.even({g.name: g.size // 2 for g in groups})
            trial = allocation.lowest_units(groups, scores, half)
            failed = unprovable(model, trial, self.example, step.attention == "heads")
            groups = left(coupling, groups, spared, failed)
        one = first_examples(self.example, 1)
        savings = allocation.savings(model, groups, step.per, one)
        ranked = allocation.ranked(groups, scores, step.allocation, step.normalise, savings)
        return self.within_budget(model, coupling, groups, ranked, number)

    def within_budget(
        self,
        model: nn.Module,
        coupling: Coupling,
        groups: Sequence[Group],
        ranked: Mapping[str, Tensor],
        number: int,
    ) -> tuple[Cuts, float | None]:
        """The least important units, as many as the round's share of the target asks for."""
        step, limits = self.step, self.limits
        most = sum(limits.most(g) for g in groups)

        def cuts(counts: Mapping[str, int]) -> Cuts:
            legal = allocation.legal_counts(coupling, groups, counts, limits)
            return allocation.lowest_units(groups, ranked, legal)

        def everywhere(share: float) -> Cuts:
            shares = dict.fromkeys((g.name for g in groups), share)
            return cuts(allocation.local_counts(groups, shares, limits))

        if self.shares is not None:
            done = {g.name: step.grow(number, self.shares.get(g.name, 0.0)) for g in groups}
            return cuts(allocation.local_counts(groups, done, limits)), None
        share = step.grow(number, step.sparsity)
        if self.cost is None:
            if step.allocation == "local":
                return everywhere(share), None
            whole = sum(limits.first(g) for g in groups)
            wanted = round(share * whole) - sum(limits.gone(g) for g in groups)
            return cuts(allocation.global_counts(groups, ranked, max(wanted, 0), limits)), None
        local = step.allocation == "local"
        levels = LATENCY_LEVELS if step.target == "latency" else LOCAL_LEVELS if local else most

        def at(level: int) -> Cuts:
            if local:
                return everywhere(level / levels * step.largest)
            wanted = -(-most * level // levels)
            return cuts(allocation.global_counts(groups, ranked, wanted, limits))

        limit = (1 - share) * self.first
        return smallest_cut(model, coupling, at, levels, self.cost, limit, step.target)

    def conclude(self, model: nn.Module) -> None:
        """Writes down what became of the network."""
        record = self.context.record
        rows = [row for row in record["rounds"] if not row.get("undone")]
        taken: dict[str, int] = {}
        for row in rows:
            for name, units in row["cut"].items():
                taken[name] = taken.get(name, 0) + units
        sizes = self.limits.sizes
        record["groups"] = [
            {"name": n, "before": sizes[n], "after": sizes[n] - k} for n, k in taken.items()
        ]
        record["spared"] = {n: why for row in rows for n, why in row["spared"].items()}
        record["barriers"] = self.coupling.barrier_lines
        record["difference"] = max((row["difference"] for row in rows), default=0.0)
        record["parameters"] = [self.before[0], parameters(model)]
        record["macs"] = [self.before[1], macs(model, self.example)]
