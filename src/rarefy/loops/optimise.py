# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of a training and what is built from them: optimiser, learning rate, average."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rarefy.loops.eight_bit import EightBitAdam, EightBitSGD


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        epochs: passes over the data.
        rate: the highest learning rate.
        optimiser: ``"sgd"`` (Nesterov momentum 0.9), ``"adam"`` or ``"adamw"``.
        schedule: of the rate: ``"cosine"`` to zero, ``"linear"`` to zero, ``"constant"``, or ``"step"``
            (divided by ten after 1/2 and 3/4).
        warmup: share of all steps in which the rate rises linearly from zero.
        weight_decay: on weights of two or more axes; biases and norms are spared.
        momentum: of SGD, or Adam's first.
        clip: largest norm of the gradient, or None.
        average: decay of an exponential moving average of the weights, which is then returned, or None.
        patience: epochs without a better validation metric after which the best weights are returned.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` mixed precision, through Accelerate.
        state_bits: of the optimiser's moments, 32, or 8 in blocks (`rarefy.loops.eight_bit`).
        resolution: share of the size at which images start to grow (`rarefy.loops.resizing`); 1: full size.
    """

    epochs: int = 10
    rate: float = 0.01
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    clip: float | None = None
    average: float | None = None
    patience: int | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    state_bits: Literal[8, 32] = 32
    resolution: float = 1.0


def build_optimiser(parameters: Iterable[Tensor], settings: Training) -> torch.optim.Optimizer:
    """The optimiser over `parameters`; weight decay acts on tensors of two or more axes only."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.state_bits == 8:
        return build_coded(groups, settings)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, settings.rate, momentum=settings.momentum, nesterov=settings.momentum > 0
        )
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, settings.rate, betas=(settings.momentum, 0.999))


def build_coded(groups: list[dict[str, Any]], settings: Training) -> torch.optim.Optimizer:
    """The same optimiser with moments of 8 bits."""
    if settings.optimiser == "sgd":
        return EightBitSGD(groups, settings.rate, settings.momentum)
    decoupled, betas = settings.optimiser == "adamw", (settings.momentum, 0.999)
    return EightBitAdam(groups, settings.rate, betas, decoupled=decoupled)


def rate_factor(settings: Training, progress: float) -> float:
    """The share of the highest learning rate at `progress` in [0, 1]."""
    if progress < settings.warmup:
        return progress / settings.warmup
    done = (progress - settings.warmup) / max(1 - settings.warmup, 1e-12)
    match settings.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case "linear":
            return max(1 - done, 0.0)
        case "step":
            return 0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0
        case _:
            return 1.0


class Average:
    """An exponential moving average of all floating-point tensors of a network's state.

    The first steps use the smaller decay (1 + n) / (10 + n), so that the start is forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = [t.detach().clone() for t in self.live(model)]

    @staticmethod
    def live(model: nn.Module) -> list[Tensor]:
        """The tensors that are averaged, in a fixed order."""
        return [t for t in model.state_dict().values() if t.is_floating_point()]

    def update(self, model: nn.Module) -> None:
        """Moves the average towards the present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.tensors, self.live(model), 1 - decay)

    @torch.no_grad()
    def store(self, model: nn.Module) -> None:
        """Writes the average into `model`."""
        torch._foreach_copy_(self.live(model), self.tensors)
