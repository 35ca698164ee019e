# SPDX-License-Identifier: Apache-2.0
"""From layers that may be replaced to the chains that replace them, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.budget import Budget
from rarefy.factorize.decomposition import Decomposition, Ranks, Rule
from rarefy.factorize.kernel import weight_from
from rarefy.factorize.mend import error_of, fed, hold, mend, weights_of
from rarefy.factorize.moments import moment_for
from rarefy.factorize.plan import plan
from rarefy.factorize.ranks import by_layer, given_ranks, in_range, out_of_range, rule_of
from rarefy.factorize.runtime import sample, times
from rarefy.factorize.sites import Site
from rarefy.loops.modes import evaluating
from rarefy.measure.quality import batches_of
from rarefy.select import Layer
from rarefy.step import Context
from rarefy.task import Inputs, move

UNCHOSEN = {
    "vbmf": "variational Bayes finds nothing in its weights that stands out of the noise",
    **dict.fromkeys(("greedy", "exact"), "no rank pays, or the budget is kept without it"),
}
Choose = Callable[[Site, Decomposition], Ranks | None]


@dataclass
class Work:
    """What a run of `Factorize` knows and writes down.

    Attributes:
        model, context: as `Factorize.apply` has them.
        step: the `Factorize` itself.
        sites: layers that can be replaced.
        rows: what was done, a mapping for every replaced layer.
        notes: what was not done, a sentence each.
    """

    model: nn.Module
    step: Any
    context: Context
    sites: Sequence[Site]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def stays(self, site: Site, reason: str) -> None:
        """Writes down why a layer is not replaced."""
        self.notes.append(f"'{site.layer.name}' stays as it is: {reason}")


def chains_for(work: Work) -> dict[Layer, nn.Sequential]:
    """The chain of every layer that is to be replaced; the layers then hold what the chains compute."""
    step, chains = work.step, dict[Layer, nn.Sequential]()
    if not step.on_data:
        choose = chooser(work, {})
        for site in work.sites:
            prepared = site.decompose(None, step.sweeps, work.context.seed)
            done = one(work, site, prepared, choose)
            if done is not None:
                ranks, chains[site.layer] = done
                write_down(work, site, prepared, ranks, None)
        return chains
    batches = inputs_of(work)
    choose = chooser(work, planned(work, batches))
    for data in fed(work.model, work.sites, batches, step.repair != "none"):
        site = data.site
        prepared = prepare(work, site, data.inputs)
        done = one(work, site, prepared, choose)
        if done is None:
            continue
        ranks, chain = done
        mend(chain, prepared, data, step.fit, step.repair, step.damping)
        chains[site.layer] = chain
        write_down(work, site, prepared, ranks, error_of(chain, data.wanted))
        dense = weight_from(site.layer.module, prepared.dense(ranks, weights_of(chain)))
        hold(site.layer.module, dense, getattr(chain[-1], "bias", None))
    return chains


def inputs_of(work: Work) -> list[Inputs]:
    """The calibration inputs on the network's device."""
    context = work.context
    found = batches_of(context.task, "calibration", work.step.examples)
    return [move(batch, context.device) for batch in found]


def prepare(work: Work, site: Site, inputs: Sequence[Tensor]) -> Decomposition:
    """A site's decomposition, with the second moment of its data if outputs are to be fitted."""
    step, moment = work.step, None
    if step.fit == "outputs":
        module = site.layer.module
        moment = moment_for(site.kind, module, site.shape, inputs, step.damping)
    return site.decompose(moment, step.sweeps, work.context.seed)


def planned(work: Work, batches: Sequence[Inputs]) -> dict[Site, Ranks | None]:
    """Ranks under a budget; empty if there is none to keep."""
    step = work.step
    if step.allocation not in ("greedy", "exact"):
        return {}
    budget, thorough = Budget.parse(step.budget), step.allocation == "exact"
    return plan(work.model, work.sites, batches, lambda s, x: prepare(work, s, x), budget, thorough)


def chooser(work: Work, plans: dict[Site, Ranks | None]) -> Choose:
    """How the ranks of a layer are chosen; None leaves it as it is."""
    step = work.step
    if step.allocation in ("greedy", "exact"):
        return lambda site, _: plans.get(site)
    if step.allocation in ("energy", "vbmf"):
        rule = rule_of(step.allocation, step.energy)
        return lambda _, decomposition: by_rule(decomposition, rule)
    wishes = by_layer(work.sites, work.model, step.ranks, step.rank)
    fulls: dict[str, Ranks] = {}
    fitting = []
    for site, (wish, special) in wishes.items():
        decomposition = site.decompose(None, step.sweeps, 0)
        fits = in_range(given_ranks(wish, site, decomposition, step.decomposition), decomposition)
        fulls[site.layer.name] = decomposition.full
        if special and not fits:
            raise out_of_range(wish, {site.layer.name: decomposition.full})
        fitting.append(fits)
    if fitting and not any(fitting):
        raise out_of_range(step.rank, fulls)

    def choose(site: Site, decomposition: Decomposition) -> Ranks | None:
        if site not in wishes:
            return None
        ranks = given_ranks(wishes[site][0], site, decomposition, step.decomposition)
        return ranks if in_range(ranks, decomposition) else None

    return choose


def by_rule(decomposition: Decomposition, rule: Rule) -> Ranks | None:
    """Ranks that a rule reads off the spectra; None if it finds none in one of them."""
    least = min(rule(spectrum) for spectrum in decomposition.spectra())
    return decomposition.ranks_by(rule) if least > 0 else None


def one(
    work: Work, site: Site, decomposition: Decomposition, choose: Choose
) -> tuple[Ranks, nn.Sequential] | None:
    """The chain of a layer at its ranks, or None if it had better stay."""
    step, module = work.step, site.layer.module
    ranks = choose(site, decomposition)
    if ranks is None:
        work.stays(site, UNCHOSEN.get(step.allocation, "its rank is out of range or not given"))
        return None
    if not site.pays(decomposition, ranks):
        at = f"rank {list(ranks)}" if len(ranks) > 1 else f"rank {ranks[0]}"
        work.stays(site, f"at {at} the factors cost as much as the layer or more")
        return None
    bias: Tensor | None = getattr(module, "bias", None)
    if step.start == "random":
        weights, norms = random_weights(work, site, decomposition, ranks), step.norms
        chain = decomposition.build(module, ranks, weights, bias, norms)
    else:
        chain = decomposition.build(module, ranks, decomposition.weights(ranks), bias)
    return None if too_slow(work, site, chain) else (ranks, chain)


def random_weights(
    work: Work, site: Site, decomposition: Decomposition, ranks: Ranks
) -> list[Tensor]:
    """Fresh weights that keep the variance from piece to piece, drawn from the step's seed."""
    draw = torch.Generator().manual_seed(work.context.seed + site.layer.index)
    pieces = decomposition.pieces(ranks)
    gains = [1.0] * (len(pieces) - 1) + [2.0]  # a rectifier usually follows
    return [
        torch.randn(p.size, generator=draw) * (gain / max(p.parameters / p.outputs, 1)) ** 0.5
        for p, gain in zip(pieces, gains, strict=True)
    ]


def too_slow(work: Work, site: Site, chain: nn.Sequential) -> bool:
    """Measures a chain against its layer if asked to; whether the layer must stay for it."""
    if work.step.slower == "allow":
        return False
    key = f"{chain} {tuple(site.x.shape)}"
    if key not in work.measured:
        with evaluating(chain):
            layer, other = times(site.layer.module, [chain], sample(site.x), site.layer.name)
        work.measured[key] = other.ratio
    ratio = work.measured[key]
    if ratio < 1:
        return False
    told = f"its factors take {ratio:.2f} times as long in ONNX Runtime"
    if work.step.slower == "refuse":
        work.stays(site, told)
        return True
    work.notes.append(f"'{site.layer.name}' became slower: {told}")
    return False


def write_down(
    work: Work, site: Site, decomposition: Decomposition, ranks: Ranks, error: float | None
) -> None:
    """Adds a replaced layer to the record."""
    then = site.cost_of(decomposition.pieces(ranks))
    row: dict[str, Any] = {
        "name": site.layer.name,
        "decomposition": site.name,
        "ranks": list(ranks),
        "parameters": [site.cost.parameters, then.parameters],
        "macs": [site.cost.macs, then.macs],
    }
    if error is not None:
        row["error"] = error
    work.rows.append(row)
