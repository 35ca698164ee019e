# SPDX-License-Identifier: Apache-2.0
"""How the tests look at couplings: groups as sets of axes, cuts of half of them, plainly zeroed networks."""

import copy

import torch
from torch import Tensor, nn

from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.groups import Group
from rarefy.graph.proof import Outcome, cut
from rarefy.task import Inputs

Cuts = list[tuple[Group, Tensor]]


def axes(group: Group) -> dict[str, int]:
    """``{"conv.weight:0": 8}`` for a group that touches eight positions along an axis."""
    return {f"{m.name}:{m.axis}": len(m.places) for m in group.members}


def seen(
    model: nn.Module, example: Inputs, **options: object
) -> dict[str, tuple[int, dict[str, int]]]:
    """Name of every group → its size and its axes."""
    coupling = couple(model, example, **options)  # type: ignore[arg-type]
    return {g.name: (g.size, axes(g)) for g in coupling.groups}


def half(coupling: Coupling) -> Cuts:
    """Half the units of every group, drawn at random, as far as the network's code allows."""
    counts = coupling.even({g.name: g.size // 2 for g in coupling.groups})
    generator = torch.Generator().manual_seed(1)
    found = []
    for name, n in counts.items():
        group = coupling.group(name)
        found.append((group, torch.randperm(group.size, generator=generator)[:n]))
    return found


def cut_half(model: nn.Module, example: Inputs) -> tuple[Coupling, Outcome]:
    """A network after half of everything is gone, with what was known and what became of it."""
    coupling = couple(model.eval(), example)
    return coupling, cut(model, coupling, half(coupling), example)


def zeroed(model: nn.Module, coupling: Coupling, removed: Tensor) -> nn.Module:
    """A copy with every entry of a parameter zero that a cut removes; nothing else is adjusted."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in found.named_parameters():
            for axis, labels in enumerate(coupling.book.parameters[name]):
                p.index_fill_(axis, removed[labels].nonzero()[:, 0], 0.0)
    return found


def halves_and_agrees(model: nn.Module, example: Inputs) -> Outcome:
    """Cuts half of every group and checks that none is spared and nothing but zeros was taken out."""
    model.eval()
    coupling = couple(model, example)
    before, cuts = copy.deepcopy(model), half(coupling)
    outcome = cut(model, coupling, cuts, example)
    assert not outcome.spared
    assert outcome.cut == {g.name: len(units) for g, units in cuts}
    expected = zeroed(before, coupling, coupling.removed(cuts))
    inputs = example if isinstance(example, tuple) else (example,)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), expected(*inputs), rtol=1e-4, atol=1e-5)
    return outcome
