# SPDX-License-Identifier: Apache-2.0
"""Training with whole layers dropped at random, after which the network works at any depth.

Fan, Grave, Joulin: Reducing Transformer Depth on Demand with Structured Dropout, 2019, arXiv 1909.11556,
section 3.1. Which layers go afterwards is up to `rarefy.prune.prune_layers`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from rarefy.errors import ModelError
from rarefy.loops.blocks import Block, blocks_of
from rarefy.loops.repair import repair
from rarefy.loops.training import TrainedStep
from rarefy.step import Context, Fraction, OpenFraction, Patterns, Positive


@contextmanager
def dropping(blocks: Sequence[Block], drop: float) -> Iterator[None]:
    """For a while, each block is passed over with probability `drop` whenever it runs in training mode.

    In eval mode all blocks run. What a dropped block would have measured, batch norms say, it does not
    measure. The draws come from torch's own generator.

    Args:
        blocks: whose input and output agree in shape.
        drop: p; what remains is not scaled up, as in the paper.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(make_droppable(block, drop))
        yield


def make_droppable(block: Block, drop: float) -> Callable[[], None]:
    """Puts a forward of its own on a block; returns what takes it off again."""
    module, whole, shortcut = block.module, block.module.forward, block.bypass()

    def forward(*args: Any, **kwargs: Any) -> Any:
        dropped = module.training and float(torch.rand(())) < drop
        return (shortcut if dropped else whole)(*args, **kwargs)

    def back() -> None:
        del vars(module)["forward"]

    vars(module)["forward"] = forward
    return back


@dataclass(frozen=True)
class LayerDrop(TrainedStep):
    """Trains with each residual block or transformer layer left out of a batch with probability `drop`.

    Attributes:
        drop: probability.
        epochs: passes over the training data.
        rate: highest learning rate.
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        temperature: softens these answers.
        blocks: globs on the paths of blocks; default: they are looked for.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    drop: OpenFraction = 0.2
    alpha: Fraction | None = None
    temperature: Positive = 4.0
    blocks: Patterns | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains in place.

        Raises:
            ModelError: no block keeps the shape of what it is given.
        """
        patterns = (self.blocks,) if isinstance(self.blocks, str) else self.blocks
        globs = None if patterns is None else tuple(map(str, patterns))
        blocks = [b for b in blocks_of(model, context.task.example, globs) if b.removable]
        if not blocks:
            raise ModelError(
                f"{type(model).__name__} has no block that keeps the shape of its input, so none can be "
                "dropped in training; name the blocks with `blocks`"
            )
        context.record["blocks"] = [b.name for b in blocks]
        with dropping(blocks, self.drop):
            return repair(
                model, context, self.training(), alpha=self.alpha,
                temperature=self.temperature, label=self.key(),
            )  # fmt: skip
