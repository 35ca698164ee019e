# SPDX-License-Identifier: Apache-2.0
"""What units gave on average moves into the biases of the layers that read them: only variation is lost.

A unit that is constant over the data is taken out without any change. With zero padding the sum is exact
but at the border.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from rarefy.graph.coupling import Coupling
from rarefy.graph.groups import Group
from rarefy.loops.modes import device_of, evaluating
from rarefy.prune.channel_activity import maps_of
from rarefy.prune.channel_allocation import Cuts
from rarefy.prune.channel_sites import Site, observed, sites_of
from rarefy.task import call, move


def foldable_readers(model: nn.Module, group: Group) -> list[Site]:
    """Inputs of the linear layers and ungrouped convolutions that read a group's units."""
    found = []
    for site in sites_of(model, group)[0]:
        module = model.get_submodule(site.module)
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, _ConvNd) and not module.transposed and module.groups == 1
        )
        if plain:
            found.append(site)
    return found


@torch.no_grad()
def mean_inputs(
    model: nn.Module, sites: Sequence[Site], batches: Iterable[Any]
) -> dict[Site, Tensor]:
    """The mean over data and positions of every channel at each site, float64, (length,)."""
    sums = {site: torch.zeros(site.length, dtype=torch.float64) for site in sites}
    counts = dict.fromkeys(sites, 0)

    def look(site: Site, x: Tensor) -> Tensor:
        maps = maps_of(site, x).double()
        sums[site] += maps.sum((0, 2)).cpu()
        counts[site] += maps.shape[0] * maps.shape[2]
        return x

    device = device_of(model)
    with evaluating(model), observed(model, sites, look):
        for inputs in batches:
            call(model, move(inputs, device))
    return {site: sums[site] / counts[site] for site in sites if counts[site]}


@torch.no_grad()
def lost_means(
    model: nn.Module, cuts: Cuts, batches: Iterable[Any]
) -> dict[str, dict[str, Tensor]]:
    """Group → layer that reads it → what the units that go add to each of its outputs on average, (out,).

    Args:
        model: before the cut.
        cuts: groups with the numbers of the units that go.
        batches: inputs.
    """
    sites = {group.name: foldable_readers(model, group) for group, _ in cuts}
    means = mean_inputs(model, [s for each in sites.values() for s in each], batches)
    found: dict[str, dict[str, Tensor]] = {}
    for group, units in cuts:
        for site in sites[group.name]:
            if site not in means:
                continue
            weight = model.get_submodule(site.module).weight
            assert isinstance(weight, Tensor)
            matrix = (
                weight.double().cpu().flatten(2).sum(2) if weight.dim() > 2 else weight.double()
            )
            gone = site.places[torch.isin(site.units, units)]
            shift = matrix.cpu()[:, gone] @ means[site][gone]
            found.setdefault(group.name, {})[site.module] = shift
    return found


@torch.no_grad()
def fold_means(
    model: nn.Module,
    coupling: Coupling,
    cuts: Cuts,
    lost: dict[str, dict[str, Tensor]],
) -> None:
    """Adds what was lost to the biases of the cut network; a layer without one gets it.

    Args:
        model: after the cut.
        coupling: of the network before it.
        cuts: that were made.
        lost: see `lost_means`; groups that were not cut are passed over.
    """
    removed = coupling.removed(cuts)
    for group, _ in cuts:
        for path, shift in lost.get(group.name, {}).items():
            module = model.get_submodule(path)
            weight = module.weight
            assert isinstance(weight, Tensor)
            name = next(n for n in names_of(path) if n in coupling.book.parameters)
            stays = ~removed[coupling.book.parameters[name][0]]
            moved = shift[stays].to(weight)
            bias = module._parameters.get("bias")
            if bias is None:
                module.bias = nn.Parameter(moved, requires_grad=weight.requires_grad)
            else:
                bias.copy_(bias + moved)


def names_of(path: str) -> list[str]:
    """The names that a layer's weight may have among the parameters."""
    dot = f"{path}." if path else ""
    return [f"{dot}weight", f"{dot}parametrizations.weight.original"]
