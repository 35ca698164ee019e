# SPDX-License-Identifier: Apache-2.0
"""Weights and scales of units as distributions: noise says which units go and how many bits the rest needs.

Louizos, Ullrich, Welling: Bayesian Compression for Deep Learning, NIPS 2017, arXiv 1705.08665, the group
normal-Jeffreys prior (section 4.1): w = z · v, q(z_g) = N(μ_z, μ_z² α_g) for every unit g, q(v) = N(μ, σ²).
KL(q(z) || p(z)) is the approximation of Molchanov et al. (2017, arXiv 1701.05369, equation 14); that of q(v)
and N(0, 1) is exact. Units whose log α exceeds a threshold go; the posterior variances of the others set
the step of a grid whose round-off they hide (section 4.3).
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rarefy.forms.shadow import Form
from rarefy.graph.fold import output_axis
from rarefy.loops.optimise import Training
from rarefy.loops.training import LearningStep
from rarefy.quantize.code_prices import LARGEST
from rarefy.quantize.entropy_penalty import LearnedGrid
from rarefy.quantize.priced import train_priced
from rarefy.quantize.tied import clothe, finite_weight, holders
from rarefy.select import Layer, select
from rarefy.step import Context, Fraction, Positive

K1, K2, K3 = 0.63576, 1.87320, 1.48695
START = -9.0  # log variances to begin with


def scale_divergence(log_alpha: Tensor) -> Tensor:
    """KL(q(z) || p(z)) under the log-uniform prior, less a constant, so that it is 0 at infinite α.

    -(k1 sigmoid(k2 + k3 log α) - 1/2 log(1 + 1/α) - k1).
    """
    return K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + 0.5 * nn.functional.softplus(-log_alpha)


def weight_divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) || N(0, 1)) = (σ² + μ² - 1 - log σ²) / 2, elementwise."""
    return 0.5 * (log_variance.exp() + mu.square() - 1 - log_variance)


def posterior_variance(mu: Tensor, log_variance: Tensor, z: Tensor, log_z: Tensor) -> Tensor:
    """Var[z v] = σ_z² (μ² + σ²) + σ² μ_z² of independent z and v, elementwise."""
    sigma, sigma_z = log_variance.exp(), log_z.exp()
    return sigma_z * (mu.square() + sigma) + sigma * z.square()


class GroupNoise(Form):
    """Draws a weight in training, and gives its posterior mean otherwise.

    Args:
        shape: of the weight.
        axis: of the units.
    """

    kind: ClassVar[str] = "mask"

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.log_variance = nn.Parameter(torch.full(shape, START))
        self.z = nn.Parameter(torch.ones(shape[axis]))
        self.log_z = nn.Parameter(torch.full((shape[axis],), START))

    def spread(self, values: Tensor) -> Tensor:
        """Values of units, shaped to broadcast over the weight."""
        return values.view([-1 if i == self.axis else 1 for i in range(self.log_variance.dim())])

    def log_alpha(self) -> Tensor:
        """log σ_z² / μ_z², (units,)."""
        return self.log_z - 2 * torch.log(self.z.abs() + 1e-8)

    def forward(self, v: Tensor) -> Tensor:
        if not self.training:
            return v * self.spread(self.z)
        z = self.z + torch.exp(0.5 * self.log_z) * torch.randn_like(self.z)
        return (v + torch.exp(0.5 * self.log_variance) * torch.randn_like(v)) * self.spread(z)

    def right_inverse(self, w: Tensor) -> Tensor:
        return w / self.spread(self.z)

    def divergence(self, v: Tensor) -> Tensor:
        """KL of the whole weight, in nats."""
        return (
            scale_divergence(self.log_alpha()).sum() + weight_divergence(v, self.log_variance).sum()
        )


def step_of(variance: Tensor, largest: float) -> float:
    """log2 of the widest power of two whose round-off the mean posterior deviation hides.

    Half a step is at most the mean of the deviations; the integers stay within ±127.
    """
    deviation = max(float(variance.sqrt().mean()), 1e-12)
    return max(
        math.floor(math.log2(2 * deviation)), math.ceil(math.log2(max(largest, 1e-30) / LARGEST))
    )


@dataclass(frozen=True)
class BayesianCompression(LearningStep):
    """Trains distributions over weights, removes noisy units, rounds the rest as coarsely as noise allows.

    Attributes:
        strength: weight of the divergence for every weight of the network against the loss of the task.
        threshold: log α above which a unit goes; the least noisy unit of a layer always stays.
        warmup: share of the training in which the divergence rises to its full strength.
        epochs: of training; 0 rounds to what the first variances hide.
        rate: learning rate of that training (Adam, cosine).
        alpha: share of the original's answers in the loss; default: 0 with labels, 1 without.
        layers, exclude: which layers, see `rarefy.select.select`.
    """

    strength: Positive = 0.3
    threshold: float = -2.0
    warmup: Fraction = 0.3
    epochs: Annotated[int, Field(ge=0)] = 20
    rate: Positive = 5e-3

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Trains, then finishes layer by layer; records units and bits."""
        groups = holders(model, select(model, self.layers, exclude=self.exclude))
        noisy: list[tuple[list[Layer], GroupNoise]] = []
        for group in groups:
            w = finite_weight(group[0])
            form = GroupNoise(tuple(w.shape), output_axis(group[0].module)).to(w.device)
            clothe(group, w, form)
            noisy.append((group, form))
        total = sum(group[0].weight.numel() for group, _ in noisy)

        def price(progress: float) -> Tensor:
            grown = min(progress / self.warmup, 1.0) if self.warmup else 1.0
            parts = [form.divergence(group[0].stored) for group, form in noisy]
            return torch.stack(parts).sum() * (self.strength * grown / max(total, 1))

        if self.epochs and noisy:
            settings = Training(self.epochs, self.rate, "adam", weight_decay=0.0)
            train_priced(model, context, settings, price, alpha=self.alpha, label="bayesian")
        model.eval()
        last = groups[-1][0].name if groups else ""
        with torch.no_grad():
            found = {g[0].name: self.finish(g, form, g[0].name != last) for g, form in noisy}
        context.record["units"] = {name: [kept, units] for name, (kept, units, _) in found.items()}
        context.record["bits"] = {name: bits for name, (_, _, bits) in found.items()}
        return model

    def finish(self, group: list[Layer], form: GroupNoise, may_go: bool) -> tuple[int, int, int]:
        """Empties noisy units and rounds; returns units left, units, and bits of a weight."""
        layer, v = group[0], group[0].stored.detach()
        stays = form.log_alpha() < self.threshold
        stays[form.log_alpha().argmin()] = True
        if not may_go:  # the network's answers
            stays[:] = True
        variance = posterior_variance(
            v, form.log_variance, form.spread(form.z), form.spread(form.log_z)
        )
        alive = form.spread(stays).expand_as(v)
        w = layer.weight.detach() * alive
        exponent = step_of(variance[alive], float(w.abs().max()))
        bias = layer.module._parameters.get("bias")
        clothe(group, w, LearnedGrid(exponent))
        if bias is not None and bias.shape == stays.shape:
            bias.mul_(stays)
        reach = int((w / 2.0**exponent).round().abs().max())
        return int(stays.sum()), len(stays), 1 + reach.bit_length()
