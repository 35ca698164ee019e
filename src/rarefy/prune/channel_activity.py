# SPDX-License-Identifier: Apache-2.0
"""What the units of coupled groups do while data runs: their activations, and the loss's slope by them.

Sums are kept a unit, never activations, so memory is bounded by one batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError
from rarefy.loops.modes import device_of, evaluating
from rarefy.loops.progress import watch
from rarefy.measure.quality import batches_of
from rarefy.prune.channel_scores import mean_ranks, positive_share
from rarefy.prune.channel_sites import Site, observed
from rarefy.task import Task, call, logits_of, move, split, tensors_of

Loss = Callable[[Any, Any], Tensor]
Sites = Mapping[str, Sequence[Site]]


def maps_of(site: Site, x: Tensor) -> Tensor:
    """A site's tensor as (B, channels, n)."""
    return x.movedim(site.axis, 1).flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def mean_size(site: Site, x: Tensor) -> Tensor:
    """The mean absolute activation of each channel, over examples and positions, (channels,)."""
    return maps_of(site, x).abs().double().mean((0, 2))


def mean_square(site: Site, x: Tensor) -> Tensor:
    """The mean squared activation of each channel, (channels,)."""
    return maps_of(site, x).double().square().mean((0, 2))


def share_heard(site: Site, x: Tensor) -> Tensor:
    """1 - APoZ of each channel, (channels,)."""
    return positive_share(maps_of(site, x))


def rank_of_maps(site: Site, x: Tensor) -> Tensor:
    """The mean rank of each channel's map, (channels,); what is no image counts as one column."""
    image = x.dim() == 4 and site.axis == -3
    return mean_ranks(x if image else maps_of(site, x).unsqueeze(3))


@torch.no_grad()
def activity(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[Any],
    measure: Callable[[Site, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Averages a measure of activations over batches of data and over a group's sites.

    Args:
        model: run in eval mode.
        sites: group → where it is seen.
        batches: inputs.
        measure: ``(site, tensor) -> (channels,)``, a mean over a batch; batches count by their examples.

    Returns:
        Group → float64 numbers, (units,).
    """
    every = [site for each in sites.values() for site in each]
    sums = {site: torch.zeros(site.size, dtype=torch.float64) for site in every}
    counts = dict.fromkeys(every, 0)

    def look(site: Site, x: Tensor) -> Tensor:
        sums[site] += len(x) * site.mean_by_unit(measure(site, x.detach()))
        counts[site] += len(x)
        return x

    device = device_of(model)
    with evaluating(model), observed(model, every, look):
        for inputs in batches:
            call(model, move(inputs, device))
    return {
        name: torch.stack([sums[s] / max(counts[s], 1) for s in each]).mean(0)
        for name, each in sites.items()
    }


def mask_slopes(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
) -> Iterator[dict[str, Tensor]]:
    """Yields for every batch the loss's slope by a mask on each unit, example by example, (B, units).

    All sites of a group wear the same mask, so their slopes add up: Σ a · dLoss/da over a unit's channels and
    positions, the change of the loss to first order when the unit goes, with the sign turned.

    Args:
        model: run in eval mode; left unchanged.
        sites: group → where it is seen.
        batches: inputs and targets.
        loss: ``(outputs, targets) -> scalar``.

    Raises:
        ModelError: the loss is not finite.
    """
    for masks, size in slopes(model, sites, batches, loss, mask_of):
        yield {
            name: sum_of([s.by_unit(g.flatten(1)) for s in each for g in masks[s]], size)
            for name, each in sites.items()
        }


def mask_of(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor under a mask of ones, one for each example and channel, and the mask."""
    shape = [1] * x.dim()
    shape[0], shape[site.axis] = len(x), site.length
    mask = torch.ones(shape, dtype=x.dtype, device=x.device, requires_grad=True)
    return x * mask, mask


def nothing_of(site: Site, x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor plus zeros, whose slopes are those by each of its values, and the zeros."""
    zeros = torch.zeros_like(x, requires_grad=True)
    return x + zeros, zeros


def slopes(
    model: nn.Module,
    sites: Sites,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    put: Callable[[Site, Tensor], tuple[Tensor, Tensor]],
) -> Iterator[tuple[dict[Site, list[Tensor]], int]]:
    """Yields for every batch the slopes by what `put` put in at each site, and how many examples it had.

    Raises:
        ModelError: the loss is not finite.
    """
    every = [site for each in sites.values() for site in each]
    device = device_of(model)
    for inputs, targets in batches:
        probes: list[tuple[Site, Tensor]] = []

        def place(site: Site, x: Tensor, probes: list[tuple[Site, Tensor]] = probes) -> Tensor:
            changed, probe = put(site, x)
            probes.append((site, probe))
            return changed

        inputs = move(inputs, device)
        with torch.enable_grad(), evaluating(model), observed(model, every, place):
            value = loss(call(model, inputs), move(targets, device))
        if not bool(torch.isfinite(value)):
            raise ModelError(f"the loss is {value.item()} on a batch: units can't be scored")
        found = torch.autograd.grad(value, [p for _, p in probes], allow_unused=True)
        result: dict[Site, list[Tensor]] = {site: [] for site in every}
        for (site, probe), g in zip(probes, found, strict=True):
            result[site].append(torch.zeros_like(probe) if g is None else g)
        yield result, len(tensors_of(inputs)[0])


def sum_of(parts: Sequence[Tensor], size: int) -> Tensor:
    """Slopes of `size` examples, each of which came in k parts: (k · size, units) to (size, units)."""
    whole = [p.view(size, -1, p.shape[-1]).sum(1) for p in parts if len(p) % size == 0]
    return (
        torch.stack(whole).sum(0) if whole else torch.stack([p.sum(0) for p in parts]).sum(0)[None]
    )


def some(task: Task, examples: int) -> Iterator[Any]:
    """Labelled training batches, until there are enough examples."""
    count = 0
    for raw in task.batches("train"):
        yield raw
        count += len(tensors_of(split(raw)[0])[0])
        if count >= examples:
            return


def answered(task: Task, examples: int, label: str) -> tuple[Iterator[tuple[Any, Any]], Loss]:
    """Inputs with targets, and the loss; without labels the network's own answers are drawn at random."""
    if task.labelled:
        return (split(raw) for raw in watch(some(task, examples), label)), task.loss
    unlabelled = ((x, None) for x in watch(batches_of(task, "calibration", examples), label))
    return unlabelled, own_answers


def own_answers(outputs: Any, _: Any) -> Tensor:
    """The mean surprise at answers drawn from what the network says itself.

    Its squared slopes give the Fisher information, where those by given labels give the empirical one.

    Args:
        outputs: logits (B, classes), (B, classes, H, W), or (B, T, classes).
    """
    logits = logits_of(outputs).float()
    by_class = logits.movedim(1, -1) if logits.dim() == 4 else logits
    rows = by_class.flatten(0, -2)
    return F.cross_entropy(rows, rows.detach().softmax(1).multinomial(1)[:, 0])
