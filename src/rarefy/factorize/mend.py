# SPDX-License-Identifier: Apache-2.0
"""Feeds chains with the data of their layers, repairs them in closed form, and tells how far off they are."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rarefy.factorize.decomposition import Decomposition
from rarefy.factorize.kernel import kernel_of, layer_kind
from rarefy.factorize.refit import Pairs, refit_bias, refit_last
from rarefy.factorize.sites import Site
from rarefy.factorize.tensor_train import TensorTrainMatrix
from rarefy.factorize.visits import visits
from rarefy.select import Layer
from rarefy.task import Inputs


@dataclass(frozen=True)
class Fed:
    """A layer with its data.

    Attributes:
        site: which layer.
        inputs: one tensor a call, under the layers changed before it.
        own: gives the inputs with the layer's own outputs.
        wanted: gives the inputs with the outputs that the layer had before anything was changed.
    """

    site: Site
    inputs: Sequence[Tensor]
    own: Pairs
    wanted: Pairs


def fed(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[Inputs], sequential: bool
) -> Iterator[Fed]:
    """Every site with its data, in the order of the network.

    Args:
        model: whose layers may be changed between two visits.
        sites: to visit.
        batches: calibration inputs.
        sequential: whether outputs are wanted as they were before the first change, which takes a copy of the
            network that runs beside it.
    """
    if not sequential:
        for site, inputs in visits(model, sites, batches):
            own = outputs_of(site.layer.module, inputs, inputs)
            yield Fed(site, inputs, own, own)
        return
    reference = copy.deepcopy(model)
    twins = [twin(site, reference) for site in sites]
    both = zip(visits(model, sites, batches), visits(reference, twins, batches), strict=True)
    for (site, inputs), (other, before) in both:
        own = outputs_of(site.layer.module, inputs, inputs)
        yield Fed(site, inputs, own, outputs_of(other.layer.module, inputs, before))


def twin(site: Site, reference: nn.Module) -> Site:
    """The same layer of a copy of the network."""
    old = site.layer
    layer = Layer(old.name, reference.get_submodule(old.name), old.tensor, old.index)
    return dataclasses.replace(site, layer=layer)


def outputs_of(module: nn.Module, given: Sequence[Tensor], fed: Sequence[Tensor]) -> Pairs:
    """Pairs of what a chain is given and what `module` makes of its own input, call by call."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for x, own in zip(given, fed, strict=True):
            with torch.no_grad():
                yield x, module(own)

    return pairs


def mend(
    chain: nn.Sequential,
    decomposition: Decomposition,
    data: Fed,
    fit: str,
    repair: str,
    damping: float,
) -> None:
    """Fits the last layer of a chain to the layer's own outputs, then repairs it towards the wanted ones.

    Args:
        chain: changed in place.
        decomposition: that it comes from.
        data: of the layer.
        fit: ``"outputs"`` solves the last layer anew where the decomposition is not the best fit already.
        repair: ``"none"``, ``"bias"``, or ``"least-squares"`` for the last layer with its bias; a tensor
            train of a matrix, whose last layer is no function of its own, gets the bias alone.
        damping: see `rarefy.factorize.refit.least_squares`.
    """
    module = data.site.layer.module
    if layer_kind(module) == "embedding":
        return
    able = not isinstance(decomposition, TensorTrainMatrix)
    bias: Tensor | None = getattr(module, "bias", None)
    if repair == "least-squares" and able:
        refit_last(chain, data.wanted, bias, damping, biased=True)
        return
    if fit == "outputs" and able and not decomposition.exact:
        refit_last(chain, data.own, bias, damping, biased=False)
    if repair != "none":
        refit_bias(chain, data.wanted)


@torch.no_grad()
def error_of(chain: nn.Module, pairs: Pairs) -> float:
    """Squared error of a chain's outputs as a share of the wanted outputs' spread about their mean."""
    off = energy = 0.0
    total: Tensor | float = 0.0
    count = 0
    axis = 1 if any(hasattr(m, "kernel_size") for m in chain.modules()) else -1
    for x, y in pairs():
        off += float((chain(x) - y).double().square().sum())
        rows = y.movedim(axis, -1).flatten(0, -2).double()
        energy += float(rows.square().sum())
        total = total + rows.sum(0)
        count += len(rows)
    mean = torch.as_tensor(total).square().sum() / max(count, 1)
    return off / max(energy - float(mean), 1e-30)


def weights_of(chain: nn.Sequential) -> list[Tensor]:
    """The weights of a chain's layers, (outputs, inputs / groups, *kernel)."""
    parts = [part for part in chain if layer_kind(part)]
    return [kernel_of(Layer("", part)).flatten(0, 1) for part in parts]


@torch.no_grad()
def hold(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a layer the weight and bias that its chain amounts to, so that later layers see it at work."""
    own: nn.Parameter = module.weight  # type: ignore[assignment]
    own.copy_(weight)
    if bias is not None and layer_kind(module) != "embedding":
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=own.requires_grad)
