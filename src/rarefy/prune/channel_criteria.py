# SPDX-License-Identifier: Apache-2.0
"""Names of criteria, and the score of every unit of a network's coupled groups by each of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError
from rarefy.graph.groups import Group
from rarefy.graph.units import unit_sums
from rarefy.loops.gradients import batch_gradients
from rarefy.loops.modes import device_of
from rarefy.loops.progress import watch
from rarefy.measure.quality import batches_of
from rarefy.prune import channel_activity as activity
from rarefy.prune import channel_scores as score
from rarefy.prune.channel_sites import Site, path_of, visible_sites
from rarefy.select import Layer, is_norm
from rarefy.task import Task, move

Scores = dict[str, Tensor]

BY_WEIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": score.l1,
    "l2": score.l2,
    "geometric-median": score.geometric_median,
}
BY_GRADIENT = ("gradient", "sensitivity", "taylor", "taylor-gate")
BY_ACTIVITY: dict[str, Callable[[Site, Tensor], Tensor]] = {
    "activation": activity.mean_size,
    "activation-norm": activity.mean_square,
    "apoz": activity.share_heard,
    "rank": activity.rank_of_maps,
}
BY_SLOPE = ("taylor-activation", "activation-gradient", "fisher")
BY_NORM = ("norm-scale", "taylor-gate")
LABELLED = (*BY_GRADIENT, "taylor-activation", "activation-gradient")


def unit_scores(
    model: nn.Module, groups: Sequence[Group], criterion: str, task: Task, examples: int, seed: int
) -> Scores:
    """The importance of every unit by a criterion; groups that it can't judge are missing.

    Args:
        model: on its device; left unchanged.
        groups: of its coupling.
        criterion: ``"l1"``, ``"l2"``, ``"geometric-median"``, ``"norm-scale"`` (|γ| of norms), ``"random"``;
            from gradients of weights on labelled data ``"gradient"`` (mean ‖g‖₂), ``"sensitivity"`` (mean
            |Σ g w|), ``"taylor"`` (mean (Σ g w)²), ``"taylor-gate"`` (the same at norms' scale and shift);
            from activations ``"activation"`` (mean |a|), ``"activation-norm"`` (root mean square),
            ``"apoz"``, ``"rank"``; from slopes by activations ``"taylor-activation"`` (|Σ a dL/da|),
            ``"activation-gradient"`` (mean |dL/da|), ``"fisher"``, which draws answers from the network
            itself where there are no labels.
        task: data and loss.
        examples: how many of them are looked at, at most, in whole batches.
        seed: of everything that is drawn.

    Returns:
        Group → float64 scores, none negative, (units,).

    Raises:
        ModelError: scores that are not finite.
    """
    torch.manual_seed(seed)
    if criterion in BY_WEIGHT:
        weights = effective(model, groups)
        found = {g.name: BY_WEIGHT[criterion](score.filters(g, weights)) for g in groups}
    elif criterion == "random":
        found = {g.name: torch.rand(g.size, dtype=torch.float64) for g in groups}
    elif criterion == "norm-scale":
        found = norm_scales(model, groups)
    elif criterion in BY_GRADIENT:
        found = gradient_scores(model, groups, criterion, task, examples)
    elif criterion in BY_ACTIVITY:
        sites = seen(model, groups, task)
        inputs = watch(batches_of(task, "calibration", examples), criterion)
        found = activity.activity(model, sites, inputs, BY_ACTIVITY[criterion])
        if criterion == "activation-norm":
            found = {name: squares.sqrt() for name, squares in found.items()}
    else:
        found = slope_scores(model, seen(model, groups, task), criterion, task, examples)
    broken = next((n for n, s in found.items() if not bool(torch.isfinite(s).all())), None)
    if broken is not None:
        raise ModelError(
            f"criterion '{criterion}' gives NaN or infinity for '{broken}'; its weights or activations "
            "are not finite"
        )
    return found


def unseen_reason(criterion: str) -> str:
    """Why a criterion has no score for a group."""
    if criterion in BY_NORM:
        return f"no norm scales its units, which criterion '{criterion}' reads"
    return f"criterion '{criterion}' can't see its units at the input or output of any layer"


def effective(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The weights that give units by the names of their parameters, masks and other forms applied."""
    names = {m.name for g in groups for m in g.members if m.role == "out"}
    held = dict(model.named_parameters())
    return {n: layer_of(model, n).weight.detach() for n in names if n in held}


def layer_of(model: nn.Module, name: str) -> Layer:
    """The weight behind a parameter's name."""
    path = path_of(name)
    rest = name[len(path) + 1 if path else 0 :]
    tensor = rest.split(".")[1] if rest.startswith("parametrizations.") else rest
    return Layer(path, model.get_submodule(path), tensor)


def norm_parameters(model: nn.Module, group: Group) -> list[str]:
    """Scales and shifts of the norms that a group's units pass."""
    held = dict(model.named_parameters())
    return [
        m.name
        for m in group.members
        if m.role == "along" and m.name in held and is_norm(model.get_submodule(path_of(m.name)))
    ]


def norm_scales(model: nn.Module, groups: Sequence[Group]) -> Scores:
    """Σ|γ| of the norms that each unit passes; groups without norms are missing.

    Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming,
    2017, arXiv 1708.06519.
    """
    held = dict(model.named_parameters())
    found = {}
    for group in groups:
        scales = [n for n in norm_parameters(model, group) if n.rpartition(".")[2] == "weight"]
        if scales:
            found[group.name] = unit_sums(group, {n: held[n].abs() for n in scales}, ("along",))
    return found


def own_parameters(model: nn.Module, group: Group) -> list[str]:
    """The weights and biases of the layers that give a group's units."""
    held = dict(model.named_parameters())
    givers = {path_of(m.name) for m in group.members if m.role == "out"}
    return [
        m.name
        for m in group.members
        if m.name in held and (m.role == "out" or (m.role == "along" and path_of(m.name) in givers))
    ]


def gradient_scores(
    model: nn.Module, groups: Sequence[Group], criterion: str, task: Task, examples: int
) -> Scores:
    """Scores from the loss's gradient by weights, taken batch by batch and averaged."""
    pick = norm_parameters if criterion in BY_NORM else own_parameters
    parts = {g.name: names for g in groups if (names := pick(model, g))}
    held = dict(model.named_parameters())
    every = dict.fromkeys(n for each in parts.values() for n in each)
    names = [n for n in every if held[n].is_floating_point()]
    layers = [layer_of(model, n) for n in names]
    totals = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups if g.name in parts}
    count = 0
    for gradients in batch_gradients(
        model, watch(activity.some(task, examples), criterion), layers, task.loss
    ):
        count += 1
        by_name = dict(zip(names, gradients, strict=True))
        for group in groups:
            if group.name not in totals:
                continue
            own = {n: by_name[n] for n in parts[group.name] if n in by_name}
            if criterion == "gradient":
                squares = {n: g.double().square() for n, g in own.items()}
                totals[group.name] += unit_sums(group, squares).sqrt()
                continue
            products = {n: g.double() * held[n].detach().double() for n, g in own.items()}
            change = unit_sums(group, products, ("out", "along"))
            joint = score.joint_sensitivity if criterion == "sensitivity" else score.joint_taylor
            totals[group.name] += joint(change)
    return {name: total / max(count, 1) for name, total in totals.items()}


def seen(model: nn.Module, groups: Sequence[Group], task: Task) -> dict[str, tuple[Site, ...]]:
    """Where the groups can be seen while the task's example runs."""
    return visible_sites(model, groups, move(task.example, device_of(model)))


def slope_scores(
    model: nn.Module,
    sites: dict[str, tuple[Site, ...]],
    criterion: str,
    task: Task,
    examples: int,
) -> Scores:
    """Scores from the loss's slope by activations.

    ``"taylor-activation"``: Molchanov, Tyree, Karras, Aila, Kautz: Pruning Convolutional Neural Networks for
    Resource Efficient Inference, 2017, arXiv 1611.06440, equation 7; each group's scores are to be divided by
    their norm, so the paper's division by the number of positions plays no part.
    """
    batches, loss = activity.answered(task, examples, criterion)
    totals = {n: torch.zeros(each[0].size, dtype=torch.float64) for n, each in sites.items()}
    count = 0
    if criterion == "activation-gradient":
        for found, size in activity.slopes(model, sites, batches, loss, activity.nothing_of):
            count += size
            for name, own in sites.items():
                for site in own:
                    sizes = [activity.mean_size(site, g) for g in found[site]]
                    total = sum(sizes, torch.zeros(site.length))
                    totals[name] += size**2 * site.mean_by_unit(total)
        return {name: total / max(count, 1) for name, total in totals.items()}
    for masks in activity.mask_slopes(model, sites, batches, loss):
        size = max(len(s) for s in masks.values())
        count += size
        for name, each in masks.items():
            # the loss is a batch's mean, so an example's own slope is as many times larger
            rise = score.fisher(len(each) * each)
            totals[name] += rise if criterion == "fisher" else size * each.sum(0).abs()
    return {name: total / max(count, 1) for name, total in totals.items()}
