# SPDX-License-Identifier: Apache-2.0
"""Which coupled channels mind being cut: the metric with the units of one group at a time really taken out.

As in Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2017, arXiv 1608.08710,
section 3.2, on the coupled groups of the whole network.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.graph.units import unit_counts
from rarefy.loops.modes import device_of
from rarefy.loops.progress import bar, silent
from rarefy.measure.quality import evaluate
from rarefy.prune.channel_allocation import lowest_units
from rarefy.prune.channel_criteria import unit_scores
from rarefy.prune.channel_selection import givers
from rarefy.select import select
from rarefy.task import Task, move

Row = dict[str, Any]


def families_of(coupling: Coupling) -> list[list[Group]]:
    """Groups that can only shrink together, in the order in which they run; single units are left out."""
    families: dict[int, list[Group]] = {}
    for group in coupling.groups:
        families.setdefault(group.family, []).append(group)
    return [each for each in families.values() if all(g.size > 1 for g in each)]


def probe_groups(
    model: nn.Module,
    task: Task,
    sparsities: Sequence[float],
    known: Collection[str] = (),
    keep: Callable[[list[Row]], None] = lambda _: None,
) -> Iterator[Row]:
    """Yields the validation metric with the smallest units of one group alone cut, without any repair.

    Every cut is made on a copy and proven.

    Args:
        model: left unchanged.
        task: needs validation data.
        sparsities: shares of a group's units that go.
        known: names of groups that are not to be probed again.
        keep: receives the rows of each group as soon as it is done.

    Returns:
        Rows with ``layer`` (the group's name), ``type``, ``units`` (that there are), ``parameters`` (that
        give them), ``sparsity``, ``cut`` (units that went), ``metric`` (None where no proof was found), and
        ``pattern`` (a layer by which `prune-channels` finds the group, or None).
    """
    task.batches("validation")
    example = move(task.example, device_of(model))
    coupling = couple(model, example)
    families = [f for f in families_of(coupling) if f[0].name not in known]
    named = {layer.name for layer in select(model)}
    scores = unit_scores(model, [g for f in families for g in f], "l2", task, 0, 0)
    with bar("sensitivity", len(families) * len(sparsities), "cut") as advance, silent():
        for family in families:
            patterns = sorted(set.union(*(givers(g) for g in family)) & named)
            found = []
            for sparsity in sparsities:
                wanted = coupling.even({g.name: round(sparsity * g.size) for g in family})
                units = [(g.name, u) for g, u in lowest_units(family, scores, wanted)]
                gone, metric = without(model, units, task)
                facts = {"sparsity": sparsity, "cut": gone, "metric": metric}
                pattern = patterns[0] if patterns else None
                found.append({**described(family, model), **facts, "pattern": pattern})
                advance(1, f"{family[0].name} {sparsity:.0%}")
            keep(found)
            yield from found


def without(
    model: nn.Module, units: Sequence[tuple[str, Tensor]], task: Task
) -> tuple[int, float | None]:
    """How many units went from a copy, and its validation metric; None where no proof was found."""
    small, example = copy.deepcopy(model), move(task.example, device_of(model))
    fresh = couple(small, example)
    outcome = cut(small, fresh, [(fresh.group(name), u) for name, u in units], example)
    quality = evaluate(small, task, "validation", reference=model)
    return sum(outcome.cut.values()), None if outcome.spared else quality.value


def described(family: list[Group], model: nn.Module) -> Row:
    """The facts of a row that hold for every sparsity."""
    return {
        "layer": family[0].name,
        "type": "channels" if len(family) == 1 else f"{len(family)} groups",
        "units": sum(g.size for g in family),
        "parameters": int(sum(unit_counts(g, model).sum() for g in family)),
    }


def group_sensitivity(model: nn.Module, task: Task, *, sparsities: Sequence[float]) -> list[Row]:
    """All rows of `probe_groups`; none where no channel can be cut."""
    return list(probe_groups(model, task, sparsities))
