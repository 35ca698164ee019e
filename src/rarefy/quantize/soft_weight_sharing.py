# SPDX-License-Identifier: Apache-2.0
"""Weights gather around the means of a mixture of normals that is learned with them.

Nowlan, Hinton: Simplifying Neural Networks by Soft Weight-Sharing, 1992; Ullrich, Meeds, Welling: Soft
Weight-Sharing for Neural Network Compression, ICLR 2017, arXiv 1702.04008: the loss grows by
-τ sum_i log sum_j π_j N(w_i; μ_j, σ_j²), one mixture for the whole network, whose component 0 stays at zero
with a share fixed close to one (equations 4 and 5), under Gamma priors on the precisions (section 3.2).
Afterwards components that lie on each other are merged and every weight becomes the mean of the component
that it most likely came from (section 4).
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.codebook import Codebook
from rarefy.loops.optimise import Training
from rarefy.loops.training import LearningStep
from rarefy.quantize.priced import train_priced
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import select
from rarefy.step import Context, Count, OpenFraction, Positive

SPEED = 20.0  # how much slower than a weight's the mixture's own scale is counted
SHAPES, RATES = (
    (5e3, 2.5e2),
    (2.0, 0.1),
)  # of the Gamma priors: of the zero component, of the others


class Mixture(nn.Module):
    """Normals on the line, the first of them at zero.

    Args:
        components: beside the one at zero.
        reach: means start evenly between minus and plus this.
        zero: share of the component at zero, fixed.
    """

    def __init__(self, components: int, reach: float, zero: float) -> None:
        super().__init__()
        self.zero = zero
        self.means = nn.Parameter(torch.linspace(-reach, reach, components))
        spread = math.log(reach / max(components, 2)) * 2
        self.variances = nn.Parameter(torch.full((components + 1,), -spread / SPEED))
        self.shares = nn.Parameter(torch.zeros(components))

    def centres(self) -> Tensor:
        """μ, zero first, (J + 1,)."""
        return torch.cat([self.means.new_zeros(1), self.means])

    def log_precisions(self) -> Tensor:
        """log 1 / σ², (J + 1,)."""
        return self.variances * SPEED

    def log_shares(self) -> Tensor:
        """log π, (J + 1,)."""
        rest = self.shares.log_softmax(0) + math.log1p(-self.zero)
        return torch.cat([rest.new_full((1,), math.log(self.zero)), rest])

    def log_joint(self, w: Tensor) -> Tensor:
        """log π_j N(w_i; μ_j, σ_j²), (n, J + 1)."""
        p = self.log_precisions()
        apart = w.reshape(-1, 1) - self.centres()
        return self.log_shares() + 0.5 * (p - math.log(2 * math.pi) - p.exp() * apart.square())

    def price(self, w: Tensor) -> Tensor:
        """-sum_i log sum_j π_j N(w_i; …), and the negative log of the Gamma priors, in nats."""
        p = self.log_precisions()
        shape = torch.tensor([SHAPES[0], *[SHAPES[1]] * len(self.means)]).to(p)
        rate = torch.tensor([RATES[0], *[RATES[1]] * len(self.means)]).to(p)
        prior = ((1 - shape) * p + rate * p.exp()).sum()
        return prior - self.log_joint(w).logsumexp(1).sum()


def merged(centres: Tensor, precisions: Tensor, shares: Tensor, nats: float) -> Tensor:
    """Which component each one is merged into, (J + 1,) indices; 0, at zero, takes others but never moves.

    Neighbours whose Kullback-Leibler divergences, both ways added, stay below `nats` are one.

    Args:
        centres, precisions, shares: (J + 1,) of the components, that at zero first.
    """
    into = torch.arange(len(centres))
    order = centres.argsort().tolist()
    for left, right in itertools.pairwise(order):
        apart = (centres[left] - centres[right]).square()
        a, b = precisions[left], precisions[right]
        distance = 0.5 * (a / b + b / a - 2 + apart * (a + b))
        if float(distance) < nats:
            one, other = int(into[left]), right
            keep = 0 if 0 in (one, other) else (one if shares[one] >= shares[other] else other)
            into[into == into[left]] = keep
            into[other] = keep
    return into


@dataclass(frozen=True)
class SoftWeightSharing(LearningStep):
    """Trains the weights under a mixture of normals, then replaces each by a component's mean.

    Attributes:
        components: beside the one at zero; the network has at most so many values that are not zero.
        strength: τ, weight of a nat for every weight against the loss of the task.
        zero: share of the component at zero.
        merge: nats below which two components are one.
        epochs: of training; 0 fits nothing and takes the mixture as it begins.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    components: Count = 16
    strength: Positive = 1.0
    zero: OpenFraction = 0.99
    merge: Positive = 1.0
    epochs: Annotated[int, Field(ge=0)] = 20
    rate: Positive = 5e-3

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains weights and mixture together, merges, assigns."""
        shared = holders(model, select(model, self.layers, exclude=self.exclude))
        weights = [finite_weight(group[0]) for group in shared]
        total = sum(w.numel() for w in weights)
        if not total:
            return model
        spread = max(float(w.abs().max()) for w in weights)
        mixture = Mixture(self.components, spread or 1.0, self.zero).to(weights[0])
        if self.epochs:
            # As a part of the network the mixture is trained and kept in checkpoints with it.
            model.add_module("mixture", mixture)

            def price(progress: float) -> Tensor:
                held = torch.cat([group[0].stored.flatten() for group in shared])
                return mixture.price(held) * (self.strength / total)

            settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
            train_priced(model, context, settings, price, alpha=self.alpha, label="soft sharing")
            del model.mixture
        with torch.no_grad():
            self.assign(shared, mixture, context)
        return model.eval()

    def assign(self, shared: list[list[Any]], mixture: Mixture, context: Context) -> None:
        """Gives every weight the mean of its component, and records how far that moved them."""
        centres, p = mixture.centres(), mixture.log_precisions().exp()
        into = merged(centres, p, mixture.log_shares().exp(), self.merge).to(centres.device)
        moved, nonzero = {}, set()
        for group in shared:
            w = finite_weight(group[0]).clone()
            codes = torch.cat(
                [into[mixture.log_joint(part).argmax(1)] for part in w.flatten().split(1 << 16)]
            )
            used, places = codes[codes > 0].unique(), torch.zeros_like(codes)
            if used.numel():
                places = torch.where(codes > 0, torch.searchsorted(used, codes) + 1, places)
            snapped = centres[codes].view_as(w)
            clothe(group, snapped, Codebook(places.view(w.shape), len(used), zero=True))
            moved[group[0].name] = float((snapped - w).norm() / w.norm().clamp(min=1e-30))
            nonzero |= set(used.tolist())
        context.record.update(relative_error=moved, distinct_values=len(nonzero) + 1)
