# SPDX-License-Identifier: Apache-2.0
"""How far a part of a rounded network is from the float one, and how it runs while it is mended."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.forms.activations import QuantizingWatcher
from rarefy.quantize.reconstruction_units import Sample
from rarefy.quantize.training_network import sites_of
from rarefy.task import tensors_of


class DroppingWatcher(QuantizingWatcher):
    """Quantises what leaves the sites, but for a share of the values that is drawn anew each time.

    Args:
        model: names the sites.
        at_site: quantisers.
        drop: share that stays as it is.
    """

    def __init__(self, model: nn.Module, at_site: dict[str, nn.Module], drop: float) -> None:
        super().__init__(model, at_site)
        self.drop = drop

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if site not in self.at_site:
            return result
        return mixed(self.at_site[site](result), result, self.drop)


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
        with DroppingWatcher(model, sites_of(model), 0.0).watching():
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
