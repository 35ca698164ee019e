# SPDX-License-Identifier: Apache-2.0
"""Takes coupled units out group by group; what their readers lose is made up for before each cut."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import cut
from rarefy.loops.modes import evaluating, watching
from rarefy.loops.progress import bar
from rarefy.prune.channel_selection import chosen_groups, left
from rarefy.prune.readers import Reader, feeds_readers_alone, readers_of
from rarefy.step import Context, Patterns
from rarefy.task import Inputs, call, move

Choose = Callable[[Group, list[Reader], int], Tensor]
Counts = Callable[[Sequence[Group]], Mapping[str, int]]


@dataclass
class Cutting:
    """Everything about a cut group by group but the method.

    Attributes:
        counts: groups → how many units of each one would like to take.
        choose: ``(group, readers, number) -> units`` that go, shape (number,); it has changed the readers'
            weights by then so that they do as well as they can without these units.
        layers, exclude: whose units go; a group goes if it holds one of `layers` and none of `exclude`.
        after: called with the network and a group's name after each cut, for example to train; or None.
        outputs: weight → which of its layer's first outputs are left, where some were cut.
    """

    counts: Counts
    choose: Choose
    layers: Patterns = "*"
    exclude: Patterns = ()
    after: Callable[[nn.Module, str], Any] | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)


def prune_by_group(model: nn.Module, context: Context, cutting: Cutting, label: str) -> nn.Module:
    """Prunes every group whose readers are matrix products, in the order of the network, proven cut by cut.

    Groups whose sizes depend on each other go together. A cut that can't be proven is not made, and the
    readers get their weights back. What was taken stands in ``context.record["cut"]`` as units by group,
    what was spared and why in ``context.record["spared"]``.

    Args:
        model: changed in place.
        context: the task's example is what the network is followed on.
        cutting: how many units, and which.
        label: of the progress bar.
    """
    example = move(context.task.example, context.device)
    spared: dict[str, str] = context.record.setdefault("spared", {})
    taken: dict[str, int] = context.record.setdefault("cut", {})
    with evaluating(model):
        whole = couple(model, example)
        coupling: Coupling | None = whole
        context.record["barriers"] = whole.barrier_lines
        families = planned(model, whole, cutting, example, spared)
        with bar(label, len(families)) as advance:
            for counts in families:
                coupling = coupling or couple(model, example)
                done = cut_family(model, coupling, cutting, counts, example, spared)
                advance(1, next(iter(counts)))
                if done:
                    taken |= done
                    coupling = None
                    if cutting.after is not None:
                        cutting.after(model, next(iter(done)))
    return model.eval()


def planned(
    model: nn.Module,
    coupling: Coupling,
    cutting: Cutting,
    example: Inputs,
    spared: dict[str, str],
) -> list[dict[str, int]]:
    """For every family of groups that can be repaired: how many units of each group go."""
    groups, hanging = chosen_groups(model, coupling, cutting.layers, cutting.exclude)
    spared |= hanging
    running = modules_run(model, example)
    reasons = {g.name: unable(model, g, example, running) for g in groups}
    barred = {name: reason for name, reason in reasons.items() if reason is not None}
    able = left(coupling, groups, spared, barred)
    counts = coupling.even(dict(cutting.counts(able)))
    families: dict[int, dict[str, int]] = {}
    for group in able:
        if counts.get(group.name):
            families.setdefault(group.family, {})[group.name] = counts[group.name]
    return list(families.values())


def unable(model: nn.Module, group: Group, example: Inputs, running: set[nn.Module]) -> str | None:
    """Why the readers of a group can't make up for its units, or None."""
    readers = readers_of(model, group)
    if readers is None:
        return "something else than linear layers and ungrouped convolutions reads its units"
    if not all(reader.layer.module in running for reader in readers):
        return "a layer that reads it is not called as a module, so its inputs can't be seen"
    if not feeds_readers_alone(model, group, readers, example):
        return "its units are normalised or mixed with others before they are read"
    return None


def modules_run(model: nn.Module, example: Inputs) -> set[nn.Module]:
    """The modules whose forward is called."""
    ran: set[nn.Module] = set()
    with watching(model.modules(), before=lambda place: ran.add(place[0])), torch.no_grad():
        call(model, example)
    return ran


def cut_family(
    model: nn.Module,
    coupling: Coupling,
    cutting: Cutting,
    counts: Mapping[str, int],
    example: Inputs,
    spared: dict[str, str],
) -> dict[str, int]:
    """Chooses, repairs and cuts; what was taken, nothing if there is no proof."""
    with ExitStack() as undo:
        cuts = []
        for name, number in counts.items():
            group = coupling.group(name)
            readers = readers_of(model, group) or []
            for reader in readers:
                remember(reader, undo)
            cuts.append((group, cutting.choose(group, readers, number)))
        before = {name: p.shape for name, p in model.named_parameters()}
        if before.keys() - coupling.book.parameters.keys():  # a reader got a bias
            coupling = couple(model, example)
            cuts = [same_units(coupling, group, units) for group, units in cuts]
        outcome = cut(model, coupling, cuts, example)
        spared |= outcome.spared
        if outcome.cut:
            undo.pop_all()
            for group, units in cuts:
                note_outputs(cutting.outputs, group, units, before)
    return outcome.cut


def same_units(coupling: Coupling, old: Group, units: Tensor) -> tuple[Group, Tensor]:
    """A group and its units as another look at the same network numbers them."""
    group, first = coupling.group(old.name), old.members[0]
    twin = next(m for m in group.members if (m.name, m.axis) == (first.name, first.axis))
    places = first.places[torch.isin(first.units, units)]
    return group, twin.units[torch.isin(twin.places, places)].unique()


def remember(reader: Reader, undo: ExitStack) -> None:
    """Lets a reader get its weight and bias back."""
    module, matrix = reader.layer.module, reader.matrix
    bias = module._parameters.get("bias")
    values = None if bias is None else bias.detach().clone()

    def back() -> None:
        reader.put(matrix)
        module._parameters["bias"] = bias
        if bias is not None and values is not None:
            bias.data.copy_(values)

    undo.callback(back)


def note_outputs(
    outputs: dict[str, Tensor], group: Group, units: Tensor, before: Mapping[str, torch.Size]
) -> None:
    """Writes down which outputs of each layer are left after a cut.

    Args:
        outputs: of earlier cuts; changed.
        group: that was cut.
        units: that went.
        before: the shapes of the parameters before the cut.
    """
    for member in group.members:
        if member.role == "out":
            size = before[member.name][member.axis]
            stays = torch.ones(size, dtype=torch.bool)
            stays[member.places[torch.isin(member.units, units)]] = False
            outputs[member.name] = outputs.get(member.name, torch.arange(size))[stays]


def share_of(sparsity: float, round_to: int = 1) -> Counts:
    """Takes the same share of every group.

    Args:
        sparsity: share of the units that go, in [0, 1); at least one unit stays.
        round_to: the number that stays is a multiple of it, or all stay.
    """

    def counts(groups: Sequence[Group]) -> dict[str, int]:
        found = {}
        for group in groups:
            stays = max(group.size - round(sparsity * group.size), 1)
            stays = min(-(-stays // round_to) * round_to, group.size)
            found[group.name] = group.size - stays
        return found

    return counts
