# SPDX-License-Identifier: Apache-2.0
"""What rounding does to the mean of every channel is taken back by the biases, layer after layer in one pass.

Nagel et al.: Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, arXiv 1906.04721,
section 4.2, with measured means. A layer's shift is measured while the layers before it are rounded and
corrected already, so that each also makes up for what they left.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.batches import mapped
from rarefy.graph.calls import CallWatcher
from rarefy.quantize.damage import Rounding, RoundingWatcher
from rarefy.task import Inputs, call, tensors_of


def channel_means(result: Tensor, module: nn.Module) -> Tensor:
    """(channels,) means of a layer's result over everything else."""
    if isinstance(module, nn.Linear):
        return result.reshape(-1, result.shape[-1]).mean(0).double()
    places = result.mean(list(range(2, result.dim()))) if result.dim() > 2 else result
    return places.double().mean(0)


def shaped(values: Tensor, result: Tensor, module: nn.Module) -> Tensor:
    """(channels,) so that it can be added to a layer's result."""
    if isinstance(module, nn.Linear):
        return values.to(result)
    return values.to(result).view(1, -1, *[1] * (result.dim() - 2))


class MeanWatcher(CallWatcher):
    """Measures mean results.

    Args:
        model: the network.
        sites: at which, with the module that makes the call.
    """

    def __init__(self, model: nn.Module, sites: dict[str, nn.Module]) -> None:
        super().__init__(model)
        self.sites, self.means = sites, dict[str, Tensor]()

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if site in self.sites:
            self.means[site] = channel_means(result, self.sites[site])
        return result


class CorrectingWatcher(RoundingWatcher):
    """Rounds every integer call and puts its mean results back to where they were.

    Attributes:
        shifts: what was added to a call's results, (channels,) by site.
    """

    def __init__(
        self, model: nn.Module, how: Rounding, sites: dict[str, nn.Module], means: dict[str, Tensor]
    ) -> None:
        super().__init__(model, how, None, passes_on=True)
        self.sites, self.means, self.shifts = sites, means, dict[str, Tensor]()

    def at(self, site: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if site not in self.how.readers:
            return func(*args, **kwargs)
        result = self.rounded(site, func, args, kwargs)
        module = self.sites.get(site)
        if module is None:
            return result
        self.shifts[site] = self.means[site] - channel_means(result, module)
        return result + shaped(self.shifts[site], result, module)


@torch.no_grad()
def correct_means(model: nn.Module, inputs: Inputs, how: Rounding) -> list[str]:
    """Adds to biases what rounding takes from mean results.

    Args:
        model: unrounded; the biases of layers that run once, and have one, change.
        inputs: one batch; the more examples, the truer the means.
        how: the rounding that will follow.

    Returns:
        Paths of the layers that were corrected.
    """
    runs = Counter(site.rpartition(":")[0] for site in how.readers)
    sites = {
        site: module
        for site in how.readers
        if runs[path := site.rpartition(":")[0]] == 1
        and isinstance(getattr(module := model.get_submodule(path), "bias", None), nn.Parameter)
        and path in how.holding
    }
    exact = MeanWatcher(model, sites)
    with exact.watching():
        call(model, inputs)
    corrected = CorrectingWatcher(model, how, sites, exact.means)
    with corrected.watching():
        call(model, inputs)
    for site, shift in corrected.shifts.items():
        bias: Any = sites[site].bias
        bias.add_(shift.to(bias))
    return [site.rpartition(":")[0] for site in corrected.shifts]


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Several batches as one, or the first of them where their tensors don't fit together."""
    first = batches[0]
    parts = [tensors_of(batch) for batch in batches]
    fit = all(
        len(part) == len(parts[0])
        and all(a.shape[1:] == b.shape[1:] and a.dim() for a, b in zip(part, parts[0], strict=True))
        for part in parts
    )
    if not fit or len(batches) == 1:
        return first
    together = iter([torch.cat(tensors) for tensors in zip(*parts, strict=True)])
    result: Inputs = mapped(first, lambda _: next(together))
    return result
