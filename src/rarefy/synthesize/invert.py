# SPDX-License-Identifier: Apache-2.0
"""Inputs out of noise, such that a network sees in them what it saw in its training data.

Lopes, Fenu, Starner 2017, arXiv 1710.07535, section 4 (activations drawn from their recorded distribution are
reproduced by gradient descent on the input); Yin et al.: Dreaming to Distill, 2020, arXiv 1912.08795
(moments in batch norms, classes, smoothness).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.loops.features import features
from rarefy.loops.modes import evaluating
from rarefy.synthesize.records import Records, moments_of
from rarefy.task import logits_of


@dataclass(frozen=True)
class Search:
    """How inputs are looked for.

    Attributes:
        steps: of Adam, for each batch.
        rate: of Adam.
        classes: weight of the cross-entropy to random classes.
        moments: weight of the distance from the recorded moments.
        top: weight of the distance from the drawn activations of the last layer.
        smoothness: weight of the total variation.
    """

    steps: int = 200
    rate: float = 0.1
    classes: float = 1.0
    moments: float = 1.0
    top: float = 1.0
    smoothness: float = 0.0


def moment_gap(seen: dict[str, Tensor], records: Records) -> Tensor:
    """Squared distance of means and of standard deviations, relative to the recorded spread, a mean."""
    gaps = []
    for name, kept in records.layers.items():
        now = moments_of(seen[name])
        mean, variance = kept.mean.to(now.mean), kept.variance.to(now.mean)
        spread = variance.clamp(min=1e-6)
        gaps.append(((now.mean - mean).square() / spread).mean())
        ratio = (now.variance + 1e-8).sqrt() / spread.sqrt()
        gaps.append((ratio - 1).square()[variance > 1e-6].sum() / len(variance))
    return torch.stack(gaps).mean()


def draw_top(records: Records, count: int, generator: torch.Generator) -> Tensor | None:
    """Activations of the last layer, (count, D), drawn from the normal distribution with their moments."""
    if records.mean is None or records.covariance is None:
        return None
    values, vectors = torch.linalg.eigh(records.covariance.double())
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is the covariance
    noise = torch.randn(count, len(values), generator=generator, dtype=torch.float64)
    return (records.mean.double() + noise @ root.mT).float()


def variation(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring places of maps (B, C, *space); 0 for vectors."""
    parts = [x.diff(dim=axis).square().mean() for axis in range(2, x.dim()) if x.shape[axis] > 1]
    return torch.stack(parts).sum() if parts else x.new_zeros(())


def invert(
    model: nn.Module,
    records: Records,
    shape: Sequence[int],
    search: Search,
    generator: torch.Generator,
) -> Tensor:
    """One batch of inputs that the network takes for training data.

    Args:
        model: in any mode, not changed; its weights get no gradient.
        records: of its activations.
        shape: of the batch, examples first.
        search: how to look.
        generator: of the starting noise, the classes and the drawn activations, on the CPU.

    Returns:
        Inputs of `shape`, on the model's device, between the recorded bounds.
    """
    device = next(model.parameters()).device
    x = torch.randn(*shape, generator=generator).to(device)
    x = x.clamp(records.lowest, records.highest).requires_grad_()
    with torch.no_grad(), evaluating(model):
        outputs = logits_of(model(x))
    K = outputs.shape[1] if outputs.dim() == 2 and outputs.shape[1] > 1 else 0
    labels = torch.randint(max(K, 1), (shape[0],), generator=generator).to(device)
    wanted = draw_top(records, shape[0], generator)
    names = [*records.layers, *([records.top] if wanted is not None else [])]
    optimiser = torch.optim.Adam([x], search.rate)
    with evaluating(model), features(model, names) as seen, torch.enable_grad():
        for _ in range(search.steps):
            logits = logits_of(model(x)).float()
            loss = search.moments * moment_gap(seen, records)
            if wanted is not None:
                off = seen[records.top].float() - wanted.to(device).clamp(
                    min=floor_of(seen, records)
                )
                loss = loss + search.top * off.square().mean() / spread_of(records).to(device)
            elif K:
                loss = loss + search.classes * F.cross_entropy(logits, labels)
            if search.smoothness:
                loss = loss + search.smoothness * variation(x)
            (x.grad,) = torch.autograd.grad(loss, [x])
            optimiser.step()
            with torch.no_grad():
                x.clamp_(records.lowest, records.highest)
    return x.detach()


def floor_of(seen: dict[str, Tensor], records: Records) -> float:
    """The least value that the last layer's input takes: 0 behind a ReLU, else none."""
    lowest = float(seen[records.top].detach().min())
    return 0.0 if lowest == 0 else -torch.inf


def spread_of(records: Records) -> Tensor:
    """The mean variance of the last layer's input."""
    covariance = records.covariance if records.covariance is not None else torch.eye(1)
    return covariance.diagonal().mean().clamp(min=1e-12)
