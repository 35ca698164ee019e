# SPDX-License-Identifier: Apache-2.0
"""Whole blocks go: those without which the network answers nearly as before become the identity.

Block influence 1 - cos(h_in, h_out): Men et al.: ShortGPT, 2024, arXiv 2403.03853, equation 1. Every other
layer: Fan, Grave, Joulin: Reducing Transformer Depth on Demand with Structured Dropout, 2019,
arXiv 1909.11556, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rarefy.errors import ModelError, described
from rarefy.loops.blocks import Block, blocks_of, bypassed, channel_cosine, put_module, record
from rarefy.loops.losses import imitation_loss
from rarefy.loops.modes import evaluating
from rarefy.measure.quality import batches_of
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import Inputs, call, logits_of, move, split, tensors_of


def alternate(number: int, share: float) -> list[int]:
    """Which of `number` layers go if every floor(1 / share)-th one does, counted from 0.

    Layers l = 1, 2, … with l mod floor(1 / share) = 0 go, so that the first one stays.
    """
    every = int(1 / share)
    return [i for i in range(number) if (i + 1) % every == 0]


def influence(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """1 - mean cosine between what goes into a block and what comes out.

    Args:
        pairs: input and output of every batch.
    """
    return 1 - float(torch.cat([channel_cosine(x, y) for x, y in pairs]).mean())


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Squared change of the network's outputs as a share of their spread about the mean.

    Args:
        before, after: outputs of every batch, of any shape.
    """
    y, found = (torch.cat([t.flatten() for t in part]).double() for part in (before, after))
    return float((found - y).square().sum() / (y - y.mean()).square().sum().clamp(min=1e-30))


@dataclass(frozen=True)
class PruneLayers(Step):
    """Removes residual blocks or transformer layers, one at a time, the least important first.

    Attributes:
        sparsity: share of the removable blocks that go, at least one.
        criterion: ``"output"`` (how much the network's outputs change without the block), ``"loss"`` (how
            much the loss rises on the validation data, without labels how far the answers move from the
            original's), ``"influence"`` (1 - cosine of the block's input and output), or ``"alternate"``
            (every second, third … block whatever it does, as fits a network trained with layer-drop).
        blocks: globs on the paths of blocks; default: they are looked for.
        keep: globs on the paths of blocks that stay.
        examples: calibration or validation examples on which blocks are judged, at most.
    """

    sparsity: OpenFraction = 1 / 3
    criterion: Literal["output", "loss", "influence", "alternate"] = "output"
    blocks: Patterns | None = None
    keep: Patterns = ()
    examples: Count = 256

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion != "alternate":
            object.__setattr__(self, "needs", frozenset({"calibration"}))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Judges all blocks, removes the least important one, and so on."""
        told = context.record.setdefault("removed", [])
        with evaluating(model):
            left = removable(model, context, globs(self.blocks), globs(self.keep) or ())
            number = max(round(self.sparsity * len(left)), 1)
            if self.criterion == "alternate":
                every = alternate(len(left), self.sparsity)
                for block in [left[i] for i in every]:
                    put_module(model, block.name, block.bypass())
                    told.append({"block": block.name})
                return model.eval()
            data = self.data(context)
            for _ in range(number):
                scores = self.scores(model, left, data, context)
                least = min(range(len(left)), key=scores.__getitem__)
                block = left.pop(least)
                put_module(model, block.name, block.bypass())
                told.append({"block": block.name, "importance": scores[least]})
        return model.eval()

    def data(self, context: Context) -> list[tuple[Inputs, Any]]:
        """Batches on which blocks are judged, with targets where the loss counts."""
        task = context.task
        if self.criterion != "loss" or not task.labelled:
            inputs = batches_of(task, "calibration", self.examples)
            return [(move(x, context.device), None) for x in inputs]
        found, seen = [], 0
        for raw in task.batches("validation" if task.validation is not None else "train"):
            found.append(move(split(raw), context.device))
            seen += len(tensors_of(found[-1][0])[0])
            if seen >= self.examples:
                break
        return found

    @torch.no_grad()
    def scores(
        self,
        model: nn.Module,
        blocks: list[Block],
        data: list[tuple[Inputs, Any]],
        context: Context,
    ) -> list[float]:
        """The importance of every block in the network as it is."""
        if self.criterion == "influence":
            return influences(model, blocks, [x for x, _ in data])
        if self.criterion == "loss":
            answers = [
                (x, y if y is not None else logits_of(call(context.teacher, x))) for x, y in data
            ]
            plain = context.task.labelled
            return [
                mean_loss(model, block, answers, context.task.loss if plain else imitation)
                for block in blocks
            ]
        before = [logits_of(call(model, x)) for x, _ in data]
        return [output_change(before, outputs_without(model, b, data)) for b in blocks]


def globs(patterns: Patterns | None) -> tuple[str, ...] | None:
    """One pattern or several, as a tuple."""
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(map(str, patterns))


def removable(
    model: nn.Module, context: Context, patterns: Sequence[str] | None, keep: Sequence[str]
) -> list[Block]:
    """The blocks that may go: their input and output agree in shape, and the network runs without them.

    Raises:
        ModelError: a block that was asked for can't go, or there is none.
    """
    example = move(context.task.example, context.device)
    found = blocks_of(model, example, patterns)
    wrong = next((b for b in found if not b.removable), None)
    if wrong is not None and patterns is not None:
        raise ModelError(
            f"block '{wrong.name}' turns shape {wrong.given} into {wrong.gives}; only blocks that keep "
            "the shape can be removed, so leave it out of `blocks`"
        )
    left = []
    for block in found:
        if block.removable and not any(fnmatchcase(block.name, p) for p in keep):
            reason = failure(model, block, example)
            if reason is None:
                left.append(block)
            else:
                note = f"'{block.name}' can't be removed: {reason}"
                context.record.setdefault("notes", []).append(note)
    if not left:
        shapes = ", ".join(f"'{b.name}' {b.given} -> {b.gives}" for b in found[:4])
        raise ModelError(
            f"{type(model).__name__} has no block that could be removed"
            + (f" (found {shapes})" if found else "; name the blocks with `blocks`")
        )
    return left


def failure(model: nn.Module, block: Block, example: Inputs) -> str | None:
    """Why the network does not run without a block, or None."""
    with torch.no_grad(), bypassed(model, block):
        try:
            call(model, example)
        except Exception as error:  # whatever the network's own code may raise
            return f"the network fails without it ({described(error)})"
    return None


def influences(model: nn.Module, blocks: Sequence[Block], inputs: Sequence[Inputs]) -> list[float]:
    """The influence of every block, in one pass over the data."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {b.name: [] for b in blocks}
    for x in inputs:
        calls = record(model, x, [b.module for b in blocks])
        for block in blocks:
            (seen,) = calls[block.module]
            pairs[block.name].append((tensors_of(seen.args)[0], tensors_of(seen.output)[0]))
    return [influence(pairs[b.name]) for b in blocks]


def outputs_without(
    model: nn.Module, block: Block, data: Sequence[tuple[Inputs, Any]]
) -> list[Tensor]:
    """What the network gives without a block."""
    with bypassed(model, block):
        return [logits_of(call(model, x)) for x, _ in data]


def imitation(outputs: Any, answers: Tensor) -> Tensor:
    """How far outputs are from the original's answers."""
    return imitation_loss(logits_of(outputs), answers, 1.0)


def mean_loss(
    model: nn.Module, block: Block, data: Sequence[tuple[Inputs, Any]], loss: Any
) -> float:
    """The loss without a block; the rise is this less a constant."""
    with bypassed(model, block):
        parts = [float(loss(call(model, x), y)) for x, y in data]
    return sum(parts) / len(parts)
