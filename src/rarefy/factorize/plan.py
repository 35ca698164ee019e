# SPDX-License-Identifier: Apache-2.0
"""Ranks for all layers together under one budget, by the error that each choice makes on real inputs.

For a ladder of ranks the squared error of a layer's outputs is measured; how much of such an error reaches
the network's own outputs is measured once a layer, with the middle of the ladder in place. The product is
what `rarefy.factorize.allocate` spends the budget on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rarefy.budget import Budget
from rarefy.errors import ModelError
from rarefy.export.inputs import first_examples
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.factorize.allocate import exact, greedy
from rarefy.factorize.decomposition import Decomposition, Ranks
from rarefy.factorize.kernel import weight_from
from rarefy.factorize.runtime import sample, times
from rarefy.factorize.sites import Site
from rarefy.factorize.truncate import energy_rank
from rarefy.factorize.visits import holding, visits
from rarefy.measure.counts import macs, parameters
from rarefy.measure.latency import latency
from rarefy.task import Inputs, call, logits_of, move

SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.16, 0.1, 0.05, 0.0)  # of a layer's cost, on its ladder
Prepare = Callable[[Site, Sequence[Tensor]], Decomposition]


@dataclass(frozen=True)
class Option:
    """One choice for a layer: its ranks (None: as it is), what it costs, and the error it makes."""

    ranks: Ranks | None
    cost: float
    error: float


def path(decomposition: Decomposition, t: float) -> Ranks:
    """Ranks that grow with t in [0, 1] from the least to the full ones; several ranks by common energy."""
    if len(decomposition.full) == 1:
        return decomposition.at(max(t, 1e-9))
    energy = 1 - 10 ** (-6 * t)
    return decomposition.ranks_by(lambda s: energy_rank(s.squares, energy))


def share_of(site: Site, decomposition: Decomposition, ranks: Ranks) -> float:
    """What a chain costs as a share of the layer: of weights or of multiplications, the larger one."""
    now, then = site.cost, site.cost_of(decomposition.pieces(ranks))
    return max(then.parameters / now.parameters, then.macs / now.macs if now.macs else 0.0)


def ladder(site: Site, decomposition: Decomposition) -> list[Ranks]:
    """Ranks at which a chain costs about the shares of `SHARES`, falling; only such that pay."""
    found: list[Ranks] = []
    for share in SHARES:
        low, high = 0.0, 1.0
        for _ in range(18):
            middle = (low + high) / 2
            if share_of(site, decomposition, path(decomposition, middle)) > share:
                high = middle
            else:
                low = middle
        ranks = path(decomposition, low)
        if ranks not in found and site.pays(decomposition, ranks):
            found.append(ranks)
    return found


@torch.no_grad()
def relative_error(module: nn.Module, inputs: Sequence[Tensor], weight: Tensor) -> float:
    """Squared error of a layer's outputs with another weight, against their spread about the mean."""
    off = spread = 0.0
    for x in inputs:
        y = module(x)
        with holding(module, weight):
            off += float((module(x) - y).double().square().sum())
        axes = [
            a for a in range(y.dim()) if a != (1 if hasattr(module, "kernel_size") else y.dim() - 1)
        ]
        spread += float((y - y.mean(axes, keepdim=True)).double().square().sum())
    return off / max(spread, 1e-30)


@torch.no_grad()
def reach(model: nn.Module, site: Site, weight: Tensor, batch: Inputs, outputs: Tensor) -> float:
    """Relative squared error of the network's outputs with another weight in one layer."""
    with holding(site.layer.module, weight):
        changed = logits_of(call(model, batch)).double()
    spread = (outputs - outputs.mean(0)).square().sum().clamp(min=1e-30)
    return float((changed - outputs).square().sum() / spread)


def options_of(
    model: nn.Module, site: Site, inputs: Sequence[Tensor], decomposition: Decomposition, unit: str
) -> tuple[list[Option], list[Tensor]]:
    """The layer as it is and every rank of its ladder with its error there; and the weights of these."""
    module, options, dense = site.layer.module, list[Option](), list[Tensor]()
    steps = ladder(site, decomposition)
    found = [decomposition.weights(ranks) for ranks in steps]
    if unit == "latency":
        bias: Tensor | None = getattr(module, "bias", None)
        chains = [
            decomposition.build(module, r, w, bias) for r, w in zip(steps, found, strict=True)
        ]
        costs = [t.median for t in times(module, chains, sample(site.x), site.layer.name)]
    else:
        then = [site.cost_of(decomposition.pieces(ranks)) for ranks in steps]
        costs = [float(getattr(cost, unit)) for cost in (site.cost, *then)]
    options.append(Option(None, costs[0], 0.0))
    for ranks, weights, cost in zip(steps, found, costs[1:], strict=True):
        dense.append(weight_from(module, decomposition.dense(ranks, weights)))
        options.append(Option(ranks, cost, relative_error(module, inputs, dense[-1])))
    return options, dense


def plan(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Inputs],
    prepare: Prepare,
    budget: Budget,
    thorough: bool,
) -> dict[Site, Ranks | None]:
    """The ranks that keep a budget at the least error; None leaves a layer as it is.

    Args:
        model: in eval mode; it stays as it is.
        sites: that may be replaced.
        batches: calibration inputs.
        prepare: makes a site's decomposition from its inputs.
        budget: with one of macs, parameters or latency; shares are of the whole network.
        thorough: by dynamic programming in the place of the greedy rule.

    Raises:
        ModelError: the budget can't be met.
    """
    unit = next(u for u in ("macs", "parameters", "latency") if getattr(budget, u) is not None)
    device = next(model.parameters()).device
    batch = move(batches[0], device)
    with torch.no_grad():
        outputs = logits_of(call(model, batch)).double()
    table: dict[Site, list[Option]] = {}
    for site, inputs in visits(model, sites, batches):
        options, dense = options_of(model, site, inputs, prepare(site, inputs), unit)
        if len(options) > 1:
            middle = len(dense) // 2
            here = options[middle + 1].error
            gain = reach(model, site, dense[middle], batch, outputs) / max(here, 1e-30)
            options = [Option(o.ranks, o.cost, gain * o.error) for o in options]
        table[site] = options
    whole = total_of(model, batch, unit)
    rest = whole - sum(options[0].cost for options in table.values())
    limit = float(budget.limit(unit, whole) or 0.0) - rest
    allocate = exact if thorough else greedy
    layers = [[(o.cost, o.error) for o in options] for options in table.values()]
    chosen = allocate(layers, limit) if limit > 0 else None
    if chosen is None:
        least = rest + sum(min(o.cost for o in options) for options in table.values())
        told = f"{unit}={getattr(budget, unit):g}"
        raise ModelError(
            f"factorize: the budget {told} can't be met: with every chosen layer at its lowest rank "
            f"{least / whole:.0%} of the network's {unit} are left; allow more, or choose more layers"
        )
    return {
        site: options[at].ranks for (site, options), at in zip(table.items(), chosen, strict=True)
    }


def total_of(model: nn.Module, batch: Inputs, unit: str) -> float:
    """What the whole network costs in a unit of the budget, for one example."""
    if unit == "parameters":
        return float(parameters(model))
    if unit == "macs":
        return float(macs(model, batch))
    one = move(first_examples(batch, 1), torch.device("cpu"))
    return latency({"network": OnnxRuntime(export_onnx(model, one))}, one, budget=1.0)[
        "network"
    ].median
