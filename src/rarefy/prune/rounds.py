# SPDX-License-Identifier: Apache-2.0
"""The loop that all iterative weight pruning shares: choose masks, repair, judge, roll back."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rarefy.forms.mask import Mask, mask_of, set_mask
from rarefy.forms.shadow import forms_of
from rarefy.loops.modes import copy_state, named_state, put_state
from rarefy.loops.optimise import Training
from rarefy.loops.repair import part_seed, repair
from rarefy.measure.quality import evaluate
from rarefy.select import Layer, sharing
from rarefy.step import Context
from rarefy.store.checkpoint import load_state, save_state

FILE = "rounds.safetensors"
Choice = Callable[[float], Sequence[Tensor]]


@dataclass(frozen=True)
class Rounds:
    """How often, and what between.

    Attributes:
        label: of the step.
        number: of rounds.
        training: after each of them; none with 0 epochs.
        tolerance: largest loss of the validation metric against the network as it came, or None.
        alpha: weight of the teacher's answers in the repair; None for what suits the task.
        temperature: of those answers.
    """

    label: str
    number: int
    training: Training
    tolerance: float | None = None
    alpha: float | None = None
    temperature: float = 4.0


def prune_in_rounds(
    model: nn.Module,
    context: Context,
    layers: Sequence[Layer],
    rounds: Rounds,
    choose: Choice,
    settle: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Sets masks round by round, each on top of the one before, and repairs in between.

    A round that loses more than `rounds.tolerance` even after the repair is undone, bit for bit, and is
    the last. What happened is told in ``context.record["rounds"]``. A run that was cut short goes on after
    its last whole round.

    Args:
        model: changed in place.
        context: where data and teacher come from.
        layers: to prune; layers that share a weight with them wear the same mask.
        rounds: how often and with what training.
        choose: progress in (0, 1] → one mask a layer, for the network as it is then. What was pruned before
            stays pruned, whatever it says.
        settle: called whenever the masks have changed, and after a round is undone.
    """
    groups = [sharing(model, layer) for layer in layers]
    newcomers = [x for group in groups for x in group if not wears_mask(x)]
    for layer in newcomers:
        set_mask(layer.module, torch.ones_like(layer.weight, dtype=torch.bool), layer.tensor)
    key = start_key(model, rounds, context.seed)
    first = metric(model, context) if rounds.tolerance is not None else None
    done = resume(model, context, key)
    told: list[dict[str, Any]] = context.record.setdefault("rounds", [])
    settle()
    good = copy_state(model) if first is not None else {}
    while done < rounds.number and not (told and told[-1].get("undone")):
        done += 1
        put_masks(groups, choose(done / rounds.number))
        settle()
        mend(model, context, rounds, done)
        row = judged(model, context, rounds, first, {"round": done, "sparsity": sparsity(layers)})
        told.append(row)
        if row.get("undone"):
            put_state(model, good)
            settle()
            note(context, rounds, row, layers)
        elif first is not None:
            good = copy_state(model)
        if rounds.number > 1:
            keep_progress(model, context, key, done)
    for layer in newcomers:
        lift_idle_mask(layer)
    return model.eval()


def judged(
    model: nn.Module, context: Context, rounds: Rounds, first: float | None, row: dict[str, Any]
) -> dict[str, Any]:
    """A round's row with the metric and whether it must be undone, where there is a tolerance."""
    if first is None or rounds.tolerance is None:
        return row
    value = metric(model, context)
    return {
        **row,
        "metric": value,
        "undone": context.task.metric.drop(first, value) > rounds.tolerance,
    }


def put_masks(groups: Sequence[Sequence[Layer]], masks: Sequence[Tensor]) -> None:
    """Narrows the masks of all layers; each mask is worn by all layers of its group."""
    for group, keep in zip(groups, masks, strict=True):
        narrowed = keep & mask_of(group[0].module, group[0].tensor)
        for layer in group:
            set_mask(layer.module, narrowed, layer.tensor)


def mend(model: nn.Module, context: Context, rounds: Rounds, number: int) -> None:
    """Trains after a round."""
    if rounds.training.epochs:
        label = rounds.label if rounds.number == 1 else f"{rounds.label} round {number}"
        share, softness = rounds.alpha, rounds.temperature
        repair(model, context, rounds.training, alpha=share, temperature=softness, label=label)


def metric(model: nn.Module, context: Context) -> float:
    """The validation metric."""
    return evaluate(model, context.task, "validation", reference=context.teacher).value


def sparsity(layers: Sequence[Layer]) -> float:
    """The share of zeros in the layers' weights."""
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


def wears_mask(layer: Layer) -> bool:
    """Whether a weight has a mask already."""
    return any(isinstance(form, Mask) for form in forms_of(layer.module, layer.tensor))


def lift_idle_mask(layer: Layer) -> None:
    """Takes off a mask that prunes nothing; the parameter below it is put back as it was."""
    if len(forms_of(layer.module, layer.tensor)) == 1 and mask_of(layer.module, layer.tensor).all():
        parametrize.remove_parametrizations(layer.module, layer.tensor, leave_parametrized=False)


def note(context: Context, rounds: Rounds, row: dict[str, Any], layers: Sequence[Layer]) -> None:
    """Says that a round was undone."""
    context.record.setdefault("notes", []).append(
        f"{rounds.label}: round {row['round']} at sparsity {row['sparsity']:.4f} lost more than "
        f"{rounds.tolerance:g} of the validation metric and was undone; sparsity is {sparsity(layers):.4f}"
    )


def start_key(model: nn.Module, rounds: Rounds, seed: int) -> str:
    """What saved progress must agree with: settings, seed and the network at the start."""
    digest = hashlib.sha256(f"{rounds}|{part_seed(seed, rounds.label)}".encode())
    for name, tensor in named_state(model):
        total = float(tensor.detach().sum(dtype=torch.float64))
        digest.update(f"{name}{tuple(tensor.shape)}{total}".encode())
    return digest.hexdigest()


def keep_progress(model: nn.Module, context: Context, key: str, done: int) -> None:
    """Leaves the state after a round in the folder, if there is one."""
    if context.folder is not None:
        state = {"key": key, "done": done, "model": copy_state(model), "record": context.record}
        save_state(context.folder / FILE, state)


def resume(model: nn.Module, context: Context, key: str) -> int:
    """Goes on from the folder's state if it is of this very start; the number of rounds behind it."""
    path = context.folder / FILE if context.folder is not None else None
    if path is None or not path.is_file():
        return 0
    state = load_state(path)
    if state["key"] != key:
        return 0
    put_state(model, state["model"])
    context.record.clear()
    context.record.update(state["record"])
    return int(state["done"])
