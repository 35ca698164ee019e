# SPDX-License-Identifier: Apache-2.0
"""The loop of iterative channel pruning: cut, repair, judge, and go back to the larger network if need be."""

import copy
import json
from collections.abc import Callable
from typing import Any

from torch import nn

from rarefy.forms.snapshot import restore, snapshot
from rarefy.prune.rounds import FILE, Rounds, judged, mend, metric, start_key
from rarefy.step import Context
from rarefy.store.checkpoint import load_state, save_state

Cut = Callable[[nn.Module, int], dict[str, Any]]


def cut_in_rounds(model: nn.Module, context: Context, rounds: Rounds, cut: Cut) -> nn.Module:
    """Cuts round by round, each on what the one before left, and repairs in between.

    A round that loses more than `rounds.tolerance` even after the repair is undone and is the last: the
    network of the round before is returned. What happened is told in ``context.record["rounds"]``. A run that
    was cut short goes on after its last whole round.

    Args:
        model: changed in place; only what is returned is valid.
        context: where data and teacher come from.
        rounds: how often and with what training.
        cut: ``(network, number of the round from 1) -> facts``; makes the cut of a round.
    """
    key = start_key(model, rounds, context.seed)
    first = metric(model, context) if rounds.tolerance is not None else None
    model, done = resumed(model, context, key)
    told: list[dict[str, Any]] = context.record.setdefault("rounds", [])
    while done < rounds.number and not (told and told[-1].get("undone")):
        done += 1
        good = copy.deepcopy(model) if first is not None else None
        facts = {"round": done, **cut(model, done)}
        mend(model, context, rounds, done)
        row = judged(model, context, rounds, first, facts)
        told.append(row)
        if row.get("undone") and good is not None:
            model = good
            context.record.setdefault("notes", []).append(
                f"{rounds.label}: round {done} lost more than {rounds.tolerance:g} of the validation "
                "metric and was undone"
            )
        if rounds.number > 1:
            keep_network(model, context, key, done)
    return model.eval()


def keep_network(model: nn.Module, context: Context, key: str, done: int) -> None:
    """Leaves the network after a round in the folder, if there is one."""
    if context.folder is None:
        return
    structure, tensors = snapshot(model)
    state = {
        "key": key,
        "done": done,
        "structure": json.dumps(structure),
        "tensors": dict(tensors),
        "record": context.record,
    }
    save_state(context.folder / FILE, state)


def resumed(model: nn.Module, context: Context, key: str) -> tuple[nn.Module, int]:
    """The network of the folder's last whole round, if it comes from this very start, and its number."""
    path = context.folder / FILE if context.folder is not None else None
    if path is None or not path.is_file():
        return model, 0
    state = load_state(path)
    if state["key"] != key:
        return model, 0
    context.record.clear()
    context.record.update(state["record"])
    network = restore(model, json.loads(state["structure"]), state["tensors"])
    return network.eval(), int(state["done"])
