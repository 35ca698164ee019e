# SPDX-License-Identifier: Apache-2.0
"""Weights that share values by a hash of their place, so that no index is stored.

Chen, Wilson, Tyree, Weinberger, Chen: Compressing Neural Networks with the Hashing Trick, 2015,
arXiv 1504.04788: w_ij = xi(i, j) * theta[h(i, j)] (equations 3 and 7); the gradient of a shared value is the
sum over its bucket (equation 12).
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.shadow import Form
from rarefy.loops.optimise import Training
from rarefy.loops.repair import repair
from rarefy.loops.training import LearningStep
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, OpenFraction, Patterns, Positive

PRIME = 2**31 - 1  # products of two residues fit into 63 bits


def coefficients(seed: str) -> Tensor:
    """Five residues mod 2^31 - 1 drawn from a text, (5, 1), int64: a layer's hash function."""
    digest = hashlib.sha512(seed.encode()).digest()
    drawn = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(5)]
    return torch.tensor([[number % (PRIME - 1) + 1] for number in drawn])


def signed_buckets(rows: int, columns: int, levels: int, c: Tensor) -> Tensor:
    """Bucket h in [0, levels) of every place (i, j), plus `levels` where the sign xi is -1; (rows, columns).

    x = c0 i + j, then ((c1 x + c2) x + c3) x + c4 mod 2^31 - 1: a polynomial of degree three over a prime
    field is four-wise independent (M. Wegman, L. Carter: New hash functions and their use in authentication
    and set equality, 1981), and integers give the same on every machine.
    """
    i, j = torch.arange(rows, device=c.device), torch.arange(columns, device=c.device)
    x = (c[0] * i.unsqueeze(1) + j) % PRIME
    value = c[1] * x
    for k in (2, 3):
        value = (value + c[k]) % PRIME * x
    return (value + c[4]) % PRIME % (2 * levels)


class Hashed(Form):
    """w = xi * theta[h]; the hash is computed, never stored.

    Theta, (1, K), and the hash function have two axes because exporters leave what depends on such tensors
    uncomputed in the file.

    Args:
        shape: of the weight.
        levels: number K of shared values.
        seed: text from which the hash function is drawn.
    """

    kind: ClassVar[str] = "codebook"
    function: nn.Parameter

    def __init__(self, shape: tuple[int, ...], levels: int, seed: str) -> None:
        super().__init__()
        self.shape, self.levels = tuple(shape), levels
        self.function = nn.Parameter(coefficients(seed), requires_grad=False)

    def buckets(self) -> Tensor:
        """See `signed_buckets`, flat; remembered between forward passes, but never part of the state."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        if torch.compiler.is_exporting():
            return signed_buckets(rows, columns, self.levels, self.function).flatten()
        found = self.__dict__.get("_found")
        if found is None or found.device != self.function.device:
            found = signed_buckets(rows, columns, self.levels, self.function).flatten().int()
            self.__dict__["_found"] = found
        return found

    def forward(self, theta: Tensor) -> Tensor:  # (1, K) -> shape
        return torch.cat([theta, -theta], 1).index_select(1, self.buckets()).view(self.shape)

    def right_inverse(self, w: Tensor) -> Tensor:
        """The least-squares fit: the mean of xi * w over every bucket, (1, K)."""
        K, signed = self.levels, self.buckets().long()
        total = w.new_zeros(2 * K).index_add_(0, signed, w.flatten())
        count = torch.bincount(signed, minlength=2 * K)
        return ((total[:K] - total[K:]) / (count[:K] + count[K:]).clamp(min=1)).unsqueeze(0)

    def baked(self, module: nn.Module, name: str, weight: Tensor) -> None:
        """Stays as it is: K values and the five numbers of the hash function are all that is stored."""


@dataclass(frozen=True)
class HashWeights(LearningStep):
    """Lets a hash function decide which weights of a layer share a value, and trains the values.

    Attributes:
        ratio: shared values of a layer divided by its weights.
        start: values to begin with: ``"random"`` (normal, with the standard deviation of the weights that
            are there, as in training from scratch) or ``"projected"`` (the least-squares fit to these
            weights, brought back to their standard deviation).
        epochs: of training; 0 for none.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    ratio: OpenFraction = 0.125
    start: Literal["random", "projected"] = "random"
    epochs: Annotated[int, Field(ge=0)] = 30
    rate: Positive = 1e-3
    layers: Patterns = "type:Linear"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Hashes every selected layer and trains the network."""
        values = {}
        generator = torch.Generator().manual_seed(context.seed)
        for shared in holders(model, select(model, self.layers, exclude=self.exclude)):
            w, name = finite_weight(shared[0]), shared[0].name
            K = max(1, round(self.ratio * w.numel()))
            form = Hashed(tuple(w.shape), K, f"{context.seed}/{name}").to(w.device)
            clothe(shared, w, form)
            theta = shared[0].stored
            with torch.no_grad():
                if self.start == "random":
                    theta.copy_(torch.randn(theta.shape, generator=generator))
                theta.mul_(w.std() / theta.std().clamp(min=1e-12) if K > 1 else 1.0)
            values[name] = K
        context.record["shared_values"] = values
        if not self.epochs:
            return model
        settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
        return repair(model, context, settings, alpha=self.alpha, label="hashed weights")
