# SPDX-License-Identifier: Apache-2.0
"""Which layers, and which coupled channels, mind being pruned: the metric with one of them at a time.

As in Han, Pool, Tran, Dally 2015, arXiv 1506.02626, figure 6, where it decides how far each layer is pruned.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rarefy
from rarefy.compress import check
from rarefy.errors import RecipeError
from rarefy.float32 import in_float32
from rarefy.forms.mask import Mask
from rarefy.forms.shadow import dress, forms_of
from rarefy.loops.progress import bar, silent
from rarefy.measure.evidence import metric_facts
from rarefy.measure.quality import evaluate
from rarefy.prune.prune_weights import choose_masks
from rarefy.prune.scores import magnitude
from rarefy.recipe import Recipe
from rarefy.report.fragility import render
from rarefy.report.frame import write_page
from rarefy.report.group_sensitivity import probe_groups
from rarefy.select import Layer, select, sharing
from rarefy.store.replacing import replacing
from rarefy.store.stages import model_key
from rarefy.task import Task

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
TABLE, PAGE = "sensitivity.json", "sensitivity.html"
Row = dict[str, Any]


def sensitivity(
    model: nn.Module, task: Task, *, sparsities: Sequence[float] = SPARSITIES
) -> list[Row]:
    """The validation metric with one layer alone pruned by magnitude, without any repair.

    Args:
        model: its weights are changed meanwhile and are bit for bit the same afterwards.
        task: needs validation data.
        sparsities: shares of zeros, each above 0 and below 1.

    Returns:
        One row for each layer and sparsity: ``layer``, ``type``, ``parameters``, ``sparsity``, ``metric``.

    Raises:
        RecipeError: a sparsity out of range.
        TaskError: no validation data.
    """
    model, task = in_float32(model, task)
    return list(probe(model, task, select(model), checked(sparsities), lambda _: None))


def write_sensitivity(
    model: nn.Module, task: Task, out: Path, *, sparsities: Sequence[float] = SPARSITIES
) -> Path:
    """Writes ``sensitivity.json`` and ``sensitivity.html`` into a folder.

    Layers and groups that the folder's table holds already, of the same network and task, are not probed
    again. Groups are under ``groups``, see `rarefy.report.group_sensitivity.probe_groups`.

    Returns:
        The page's path.

    Raises:
        RarefyError: as `sensitivity`; or a network with weights or answers that are not finite.
    """
    wanted = checked(sparsities)
    model, task = in_float32(model, task)
    check(model, task, Recipe(()))
    key = model_key(model, task.identity(), repr(wanted), rarefy.__version__)
    table = out / TABLE
    document = known(table, key)
    if document is None:
        quality = evaluate(model, task, "validation", reference=model, label="baseline")
        document = {
            "rarefy": rarefy.__version__,
            "key": key,
            "model": type(model).__name__,
            "task": task.name,
            "metric": metric_facts(quality, "pytorch"),
            "rows": [],
            "groups": [],
        }
    rows: list[Row] = document["rows"]
    done = {row["layer"] for row in rows}
    left = [layer for layer in select(model) if layer.path not in done]
    out.mkdir(parents=True, exist_ok=True)

    def keeping(into: list[Row]) -> Callable[[list[Row]], None]:
        def keep(found: list[Row]) -> None:
            into.extend(found)
            with replacing(table) as partial:
                partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

        return keep

    for _ in probe(model, task, left, wanted, keeping(rows)):
        pass
    groups: list[Row] = document.setdefault("groups", [])
    for _ in probe_groups(model, task, wanted, {r["layer"] for r in groups}, keeping(groups)):
        pass
    return write_page(render(document), out / PAGE)


def checked(sparsities: Sequence[float]) -> tuple[float, ...]:
    """The sparsities in ascending order, each once.

    Raises:
        RecipeError: there is none, or one is out of range.
    """
    wrong = next((s for s in sparsities if not 0 < s < 1), None)
    if wrong is not None or not sparsities:
        raise RecipeError(
            f"sensitivity: sparsities={tuple(sparsities)!r} is not allowed: each must be above 0 and below 1"
        )
    return tuple(sorted(set(sparsities)))


def known(table: Path, key: str) -> Row | None:
    """The document that an earlier run left, if it is of the same network, task and sparsities."""
    try:
        found = json.loads(table.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def probe(
    model: nn.Module,
    task: Task,
    layers: Sequence[Layer],
    sparsities: tuple[float, ...],
    keep: Callable[[list[Row]], None],
) -> Iterator[Row]:
    """Yields the rows; `keep` receives those of each layer as soon as it is done."""
    task.batches("validation")
    reference = None if task.labelled else answers(model)
    with bar("sensitivity", len(layers) * len(sparsities), "probe") as advance, silent():
        for layer in layers:
            found = []
            scores, weight = magnitude(layer.weight.detach()), layer.weight.detach()
            for sparsity in sparsities:
                mask = choose_masks([scores], [weight], sparsity, "local")[0]
                with pruned(model, layer, mask):
                    quality = evaluate(model, task, "validation", reference=reference)
                found.append(
                    {
                        "layer": layer.path,
                        "type": type(layer.module).__name__.removeprefix("Parametrized"),
                        "parameters": weight.numel(),
                        "sparsity": sparsity,
                        "metric": quality.value,
                    }
                )
                advance(1, f"{layer.path} {sparsity:.0%}")
            keep(found)
            yield from found


def answers(model: nn.Module) -> nn.Module:
    """A copy that answers as the network did before any layer was pruned."""
    return copy.deepcopy(model).eval()


@contextmanager
def pruned(model: nn.Module, layer: Layer, keep: Tensor) -> Iterator[None]:
    """Zeros where `keep` is False, for a while, in all modules that share the weight."""
    if not forms_of(layer.module, layer.tensor):
        stored = layer.stored
        original = stored.data
        stored.data = torch.where(keep, original, torch.zeros_like(original))
        try:
            yield
        finally:
            stored.data = original
        return
    holders = sharing(model, layer)
    for holder in holders:
        dress(holder.module, holder.tensor, Mask(keep))
    try:
        yield
    finally:
        for holder in holders:
            stack: Any = holder.module.parametrizations[holder.tensor]  # type: ignore[index]
            del stack[-1]
