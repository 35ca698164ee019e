# SPDX-License-Identifier: Apache-2.0
"""How far a part of a rounded network is from the float one, and how it runs while it is mended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.forms.activations import QuantizingWatcher, quantizers_of
from rarefy.quantize.reconstruction_units import Sample
from rarefy.quantize.training_network import sites_of
from rarefy.task import tensors_of


class DroppingWatcher(QuantizingWatcher):
    """Quantises what leaves the sites, but for a share of the values that is drawn anew each time.

    Args:
        model: holds the quantisers and names the sites.
        drop: share that stays as it is.
    """

    def __init__(self, model: nn.Module, drop: float) -> None:
        held = quantizers_of(model)
        super().__init__(model, sites_of(model), held.unrounded if held is not None else ())
        self.drop = drop

    def rounded(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        return mixed(super().rounded(quantizer, x), x, self.drop)


def mixed(rounded: Tensor, exact: Tensor, drop: float) -> Tensor:
    """`exact` with probability `drop`, value by value, else `rounded`."""
    if drop == 0:
        return rounded
    return torch.where(torch.rand_like(rounded) < drop, exact, rounded)


def output_error(found: Tensor, target: Tensor) -> Tensor:
    """Squared distance of outputs, summed over channels, averaged over examples and positions."""
    return (found - target).square().sum(1).mean()


@torch.no_grad()
def unit_error(model: nn.Module, module: nn.Module, samples: Sequence[Sample]) -> float:
    """How far a part's outputs are from the float ones over all samples, all activations rounded.

    Args:
        model: names the sites.
        module: the part.
        samples: see `rarefy.quantize.reconstruction_units`.
    """
    total = 0.0
    for sample in samples:
        args, kwargs = sample.rounded
        with DroppingWatcher(model, 0.0).watching():
            found = tensors_of(module(*args, **kwargs))[0]
        total += float(output_error(found, sample.target)) * sample.size
    return total / sum(sample.size for sample in samples)


@contextmanager
def requiring_grad(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Lets gradients flow to some tensors for a while, and to nothing else."""
    tensors = [tensor for group in groups for tensor in group["params"]]
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
