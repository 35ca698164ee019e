# SPDX-License-Identifier: Apache-2.0
"""Cuts that are proven: the smaller network gives what the larger one gives with zeros, or nothing is cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.graph.coupling import Coupling, Group
from rarefy.graph.masked import masked_outputs, outputs_with, shake
from rarefy.graph.surgery import apply, plan, sliced
from rarefy.task import Inputs

TOLERANCE = 1e-4
Cuts = Sequence[tuple[Group, Tensor]]


@dataclass
class Outcome:
    """What became of a cut.

    Attributes:
        cut: group → units that were taken.
        spared: group → why it was left alone.
        difference: between the outputs of the cut network and the zeroed one, as a share of their range.
    """

    cut: dict[str, int] = field(default_factory=dict)
    spared: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0


def cut(
    model: nn.Module, coupling: Coupling, cuts: Iterable[tuple[Group, Tensor]], example: Inputs
) -> Outcome:
    """Takes units out of a network for good, and proves that nothing else changed.

    Args:
        model: the one that was coupled; changed in place. Afterwards `coupling` no longer fits it.
        coupling: what `couple` found.
        cuts: groups with the numbers of the units to take, see `Coupling.even`.
        example: the batch that it was coupled with.

    Returns:
        What was cut, and the groups that were left alone because no proof was found: their cut network
        failed or gave something else.

    Raises:
        ModelError: all units of a group would go, or the network gives NaN.
    """
    was = {m: m.training for m in model.modules()}
    model.eval()
    outcome = Outcome()
    try:
        chosen = list(cuts)
        while chosen:
            chosen, removed, values, wired = plan(coupling, chosen)
            outcome.spared |= {
                g.name: "a size that the code computes can't be made right" for g in wired
            }
            bad = prove(model, coupling, chosen, example, outcome)
            if not bad:
                apply(model, coupling, removed, values)
                outcome.cut = {g.name: len(units) for g, units in chosen}
                break
            chosen = [(g, u) for g, u in chosen if g.family not in bad]
    finally:
        for module, mode in was.items():
            module.training = mode
    return outcome


def prove(
    model: nn.Module, coupling: Coupling, chosen: Cuts, example: Inputs, outcome: Outcome
) -> set[int]:
    """The families whose cut fails; the network is as before."""
    reason = attempt(model, coupling, chosen, example, outcome)
    if reason is None:
        return set()
    families = sorted({g.family for g, _ in chosen})
    if len(families) == 1:
        outcome.spared |= {g.name: reason for g, _ in chosen}
        return set(families)
    half = set(families[: len(families) // 2])
    bad: set[int] = set()
    for side in (half, set(families) - half):
        part = [(g, u) for g, u in chosen if g.family in side]
        bad |= prove(model, coupling, part, example, outcome)
    if not bad:  # each half is right alone, but not both
        outcome.spared |= {g.name: reason for g, _ in chosen if g.family in half}
        return half
    return bad


@torch.no_grad()
def attempt(
    model: nn.Module, coupling: Coupling, chosen: Cuts, example: Inputs, outcome: Outcome
) -> str | None:
    """Why a cut can't be proven, or None; the network is as before."""
    left, removed, values, wired = plan(coupling, chosen)
    if wired or len(left) < len(list(chosen)):
        return "a size that the code computes can't be made right"
    shaken = shake(model)
    expected = masked_outputs(model, coupling.book, removed, example, shaken)
    undo = apply(model, coupling, removed, values)
    try:
        small = {
            name: sliced(tensor, [~removed[own] for own in coupling.book.parameters[name]])
            for name, tensor in shaken.items()
        }
        found = outputs_with(model, small, example)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as error:
        return f"the cut network fails: {(str(error).splitlines() or [''])[0]}"
    finally:
        undo.back()
    if [t.shape for t in found] != [t.shape for t in expected]:
        return "the cut network gives another shape"
    outcome.difference = max(
        (difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0
    )
    if not outcome.difference <= TOLERANCE:
        return (
            f"the cut network differs from the zeroed one by {outcome.difference:.2g} of its range"
        )
    return None


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value."""
    if not expected.is_floating_point() or not expected.numel():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if not bool(torch.isfinite(expected).all()):
        raise ModelError("the network gives NaN or infinity on the example with channels zeroed")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
