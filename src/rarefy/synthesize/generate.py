# SPDX-License-Identifier: Apache-2.0
"""A generator that learns to make inputs a network is sure about, for as many inputs as are wanted.

Chen et al.: Data-Free Learning of Student Networks, 2019, arXiv 1904.01186 (one-hot answers, activations,
evenly used classes), with the recorded moments of `rarefy.synthesize.records` in the place of activations.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.loops.features import features
from rarefy.loops.modes import evaluating
from rarefy.synthesize.invert import Search, moment_gap, variation
from rarefy.synthesize.records import Records
from rarefy.task import logits_of


class Generator(nn.Module):
    """Noise (B, noise) to inputs of a shape: a linear layer, then for images two convolutions.

    Args:
        shape: of one input.
        noise: numbers that one input is made of.
        width: channels inside.
        lowest, highest: bounds of what it gives.
    """

    def __init__(
        self,
        shape: Sequence[int],
        noise: int = 32,
        width: int = 32,
        *,
        lowest: float,
        highest: float,
    ) -> None:
        super().__init__()
        self.shape, self.noise = tuple(shape), noise
        self.centre, self.reach = 0.5 * (lowest + highest), 0.5 * (highest - lowest)
        images = len(self.shape) == 3
        self.start = (width, *(max(math.ceil(side / 2), 1) for side in self.shape[1:]))
        self.body: nn.Module
        if images:
            self.body = nn.Sequential(
                nn.Linear(noise, math.prod(self.start)), nn.Unflatten(1, self.start),
                nn.BatchNorm2d(width), nn.Upsample(self.shape[1:]),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
                nn.Conv2d(width, self.shape[0], 3, padding=1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Linear(noise, 4 * width), nn.BatchNorm1d(4 * width), nn.LeakyReLU(0.2),
                nn.Linear(4 * width, math.prod(self.shape)), nn.Unflatten(1, self.shape),
            )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.centre + self.reach * torch.tanh(self.body(z))


def certainty_loss(logits: Tensor) -> Tensor:
    """Cross-entropy to the answers' own classes, less the entropy of how evenly the classes are used.

    Chen et al., equations 3 and 5.

    Args:
        logits: (B, K).
    """
    own = F.cross_entropy(logits, logits.argmax(1))
    used = logits.softmax(1).mean(0)
    return own + (used * used.clamp(min=1e-12).log()).sum()


def train_generator(
    model: nn.Module,
    records: Records,
    shape: Sequence[int],
    search: Search,
    generator: torch.Generator,
) -> Generator:
    """A generator of inputs that the network takes for training data.

    Args:
        model: in any mode, not changed.
        records: of its activations.
        shape: of a batch, examples first.
        search: steps, rate (of Adam, a tenth of what inputs themselves get) and weights.
        generator: of all draws, on the CPU.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        maker = Generator(shape[1:], lowest=records.lowest, highest=records.highest).to(device)
    optimiser = torch.optim.Adam(maker.parameters(), 0.1 * search.rate)
    with evaluating(model), features(model, records.layers) as seen, torch.enable_grad():
        for _ in range(search.steps):
            z = torch.randn(shape[0], maker.noise, generator=generator).to(device)
            x = maker(z)
            logits = logits_of(model(x)).float()
            loss = search.moments * moment_gap(seen, records)
            if logits.dim() == 2 and logits.shape[1] > 1:
                loss = loss + search.classes * certainty_loss(logits)
            loss = loss + search.smoothness * variation(x)
            parameters = list(maker.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
            optimiser.step()
    return maker


@torch.no_grad()
def generated(maker: Generator, count: int, generator: torch.Generator) -> Tensor:
    """`count` inputs in one batch, made in training mode as the generator learnt to."""
    device = next(maker.parameters()).device
    return maker.train()(torch.randn(count, maker.noise, generator=generator).to(device))
