# SPDX-License-Identifier: Apache-2.0
"""Cuts that are proven: the smaller network gives what the larger one gives with zeros, or nothing is cut."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rarefy.errors import described
from rarefy.graph.coupling import Coupling
from rarefy.graph.decisions import Deciding, Following, difference
from rarefy.graph.groups import Group
from rarefy.graph.masked import masked_outputs, outputs_with
from rarefy.graph.numbers import Attribute
from rarefy.graph.slicing import sliced
from rarefy.graph.smaller import smaller
from rarefy.graph.stand_ins import shake
from rarefy.graph.surgery import apply, plan
from rarefy.graph.unfused import forget
from rarefy.task import Inputs

TOLERANCE = 1e-4
WRONG_SHAPE = "the cut network gives another shape"
WRONG_SIZE = "a size that the code computes can't be made right"
Cuts = Sequence[tuple[Group, Tensor]]


@dataclass
class Outcome:
    """What became of a cut.

    Attributes:
        cut: group → units that were taken.
        spared: group → why it was left alone.
        barriers: what keeps channels because nobody knows it, see `Coupling.barrier_lines`.
        difference: between the outputs of the cut network and the zeroed one, as a share of their range.
    """

    cut: dict[str, int] = field(default_factory=dict)
    spared: dict[str, str] = field(default_factory=dict)
    barriers: list[str] = field(default_factory=list)
    difference: float = 0.0


def cut(
    model: nn.Module, coupling: Coupling, cuts: Iterable[tuple[Group, Tensor]], example: Inputs
) -> Outcome:
    """Takes units out of a network for good, and proves that nothing else changed.

    Args:
        model: the one that was coupled; changed in place. Afterwards `coupling` no longer fits it.
        coupling: what `couple` found.
        cuts: groups with the numbers of the units to take, see `Coupling.even`.
        example: the batch that it was coupled with. Where the network takes the same path for one smaller
            image, outputs are compared on that, and shapes on the example.

    Returns:
        What was cut, and the groups that were left alone because no proof was found: their cut network
        failed or gave something else.

    Raises:
        ModelError: all units of a group would go, or the network gives NaN.
    """
    was = {m: m.training for m in model.modules()}
    model.eval()
    outcome = Outcome(barriers=coupling.barrier_lines)
    try:
        search = Search(model, coupling, example, outcome, smaller(example))
        chosen: Cuts = list(cuts)
        while chosen:
            bad = search.failing(chosen, keep=True)
            if not bad:
                break
            chosen = [(g, u) for g, u in chosen if g.family not in bad]
    finally:
        forget(model)
        for module, mode in was.items():
            module.training = mode
    return outcome


@dataclass
class Search:
    """Looks for the families that spoil a cut, by halving.

    Attributes:
        model, coupling, example: see `cut`.
        outcome: what was found so far.
        trial: what both networks run on: a smaller batch, or the example if that can't be.
    """

    model: nn.Module
    coupling: Coupling
    example: Inputs
    outcome: Outcome
    trial: Inputs

    def failing(self, chosen: Cuts, keep: bool = False) -> set[int]:
        """The families that fail.

        Args:
            chosen: groups with units.
            keep: whether a cut without any is left in place; otherwise the network is as before.
        """
        reason = self.attempt(chosen, keep)
        if reason is None:
            return set()
        families = sorted({g.family for g, _ in chosen})
        if len(families) == 1:
            self.outcome.spared |= {g.name: reason for g, _ in chosen}
            return set(families)
        half = set(families[: len(families) // 2])
        bad: set[int] = set()
        for side in (half, set(families) - half):
            bad |= self.failing([(g, u) for g, u in chosen if g.family in side])
        if not bad:  # each half is right alone, but not both
            self.outcome.spared |= {g.name: reason for g, _ in chosen if g.family in half}
            return half
        return bad

    @torch.no_grad()
    def attempt(self, chosen: Cuts, keep: bool) -> str | None:
        """Why a cut can't be proven, or None."""
        left, removed, values, wired = plan(self.coupling, chosen)
        if wired and not keep:
            return WRONG_SIZE
        self.outcome.spared |= {g.name: WRONG_SIZE for g in wired}
        reason = self.judged(removed, values, keep)
        if reason is not None and self.trial is not self.example:
            self.trial = self.example  # the network may not allow a smaller one
            reason = self.judged(removed, values, keep)
        if reason is None and keep:
            self.outcome.cut = {g.name: len(units) for g, units in left}
        return reason

    def judged(self, removed: Tensor, values: dict[Attribute, int], keep: bool) -> str | None:
        """Why the cut network is not the zeroed one, or None; only then it may stay.

        Args:
            removed: which labels go, shape (count + 1,).
            values: new values of attributes.
            keep: whether a cut that is proven stays.
        """
        shaken = shake(self.model)
        book, decisions = self.coupling.book, Deciding()
        path = None if self.trial is self.example else book.path
        try:
            with decisions if book.decides else nullcontext():
                expected = masked_outputs(self.model, book, removed, self.trial, shaken, path)
        except Exception as error:  # whatever the network's own code may raise
            return f"the zeroed network fails: {described(error)}"
        undo = apply(self.model, self.coupling, removed, values)
        proven = False
        try:
            kept = book.kept(removed)
            small = {n: sliced(t, kept.get(n, {})) for n, t in shaken.items()}
            with Following(decisions.taken, TOLERANCE) if book.decides else nullcontext():
                found = outputs_with(self.model, small, self.trial)
            reason = self.disagreement(found, expected)
            if reason is None and path is not None:
                found = outputs_with(self.model, {}, self.example)
                reason = WRONG_SHAPE if [t.shape for t in found] != book.shapes else None
            proven = reason is None
        except Exception as error:  # whatever the network's own code may raise
            reason = f"the cut network fails: {described(error)}"
        finally:
            if not (proven and keep):
                undo.back()
        return reason

    def disagreement(self, found: list[Tensor], expected: list[Tensor]) -> str | None:
        """What is wrong with the outputs of the cut network, or None."""
        if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
            return "the network gives NaN or infinity with its channels zeroed"
        if [t.shape for t in found] != [t.shape for t in expected]:
            return WRONG_SHAPE
        off = max((difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
        if not off <= TOLERANCE:
            return f"the cut network differs from the zeroed one by {off:.2g} of its range"
        self.outcome.difference = off
        return None
