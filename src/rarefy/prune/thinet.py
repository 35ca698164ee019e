# SPDX-License-Identifier: Apache-2.0
"""Channels go whose contributions to the next layer nearly cancel; the others are scaled to make up.

Luo, Wu, Lin: ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, 2017,
arXiv 1707.06342: sampled inputs of the next layer (section 3.2.1), greedy choice (equation 6, algorithm 1),
least squares (equation 7).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.prune.readers import Reader
from rarefy.prune.reconstruction import Reconstruction, Samples
from rarefy.prune.rescale import rescale
from rarefy.step import Context, Count, Positive


def greedy_removal(G: Tensor, number: int) -> Tensor:
    """The set T of channels, grown one by one, whose summed contributions have the least energy.

    Minimises sum_i (sum_{c in T} x_ic)² at every step.

    Args:
        G: products XᵀX of the contributions x (samples, channels), (channels, channels).
        number: of channels to take.

    Returns:
        (number,) channels in the order in which they were taken.
    """
    energy = G.diagonal().clone()  # of T with each channel added, less that of T
    chosen = torch.zeros(number, dtype=torch.long)
    for i in range(number):
        c = chosen[i] = int(energy.argmin())
        energy = energy + 2 * G[:, c]
        energy[chosen[: i + 1]] = torch.inf
    return chosen


@dataclass(frozen=True)
class Thinet(Reconstruction):
    """Removes the channels, neurons or heads that the next layer misses least, greedily, layer by layer.

    Attributes:
        sparsity, round_to, examples, layers, exclude: see
            `rarefy.prune.reconstruction.Reconstruction`.
        samples: entries of the next layer's output that are looked at.
        rescale: whether the channels that stay are scaled by least squares.
        epochs: of training after each layer; 0 for none.
        rate: highest learning rate of this training.
    """

    samples: Count = 4096
    rescale: bool = True
    epochs: Annotated[int, Field(ge=0)] = 0
    rate: Positive = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs:
            object.__setattr__(self, "needs", frozenset({"calibration", "train"}))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Collects, chooses, scales, cuts and trains, one layer after the other."""
        samples = Samples(self, context)

        def choose(group: Group, readers: list[Reader], number: int) -> Tensor:
            rows = samples.rows(model, readers)
            draw = torch.Generator().manual_seed(context.seed)
            X = [
                reader.contributions(
                    x, torch.randint(len(reader.matrix), (len(x),), generator=draw)
                )
                for reader, x in zip(readers, rows, strict=True)
            ]
            gone = greedy_removal(sum(x.mT @ x for x in X), number)  # type: ignore[arg-type]
            if self.rescale:
                for reader, x in zip(readers, X, strict=True):
                    rescale(reader, x, gone)
            return gone

        def after(pruned: nn.Module, name: str) -> Any:
            training = Training(self.epochs, self.rate, weight_decay=1e-4)
            return repair(pruned, context, training, label=f"{self.key()} {name}")

        return self.prune(model, context, self.cutting(choose, after))
