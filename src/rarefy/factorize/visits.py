# SPDX-License-Identifier: Apache-2.0
"""Hands out one replaceable layer after the other with what it is fed, embeddings included."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.factorize.kernel import layer_kind
from rarefy.factorize.sites import Site
from rarefy.loops.modes import device_of, evaluating
from rarefy.loops.walk import walk
from rarefy.task import Inputs, call, move


def visits(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[Inputs]
) -> Iterator[tuple[Site, list[Tensor]]]:
    """Every site with its inputs, one tensor a call, under the layers changed before it.

    Embeddings come first: what they look up does not depend on other layers.

    Args:
        model: on its device, in eval mode.
        sites: of layers that some batch reaches.
        batches: inputs without targets.
    """
    lookups = [site for site in sites if layer_kind(site.layer.module) == "embedding"]
    if lookups:
        found = looked_up(model, lookups, batches)
        yield from ((site, found[site]) for site in lookups)
    rest = {site.layer: site for site in sites if site not in lookups}
    if rest:
        for visit in walk(model, batches, list(rest)):
            yield rest[visit.layer], [one.x for one in visit.calls]


def looked_up(
    model: nn.Module, sites: Sequence[Site], batches: Iterable[Inputs]
) -> dict[Site, list[Tensor]]:
    """The indices that embeddings are called with."""
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[site].append(next(iter([*args, *kwargs.values()])))

    with ExitStack() as stack:
        for site in sites:
            hook = site.layer.module.register_forward_pre_hook(
                lambda _, args, kwargs, site=site: keep(site, args, kwargs), with_kwargs=True
            )
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        with torch.no_grad():
            for batch in batches:
                call(model, move(batch, device_of(model)))
    return found


@contextmanager
def holding(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """Lets a layer hold another weight for a while."""
    own: nn.Parameter = module.weight  # type: ignore[assignment]
    kept = own.data
    own.data = weight.to(kept).contiguous()
    try:
        yield
    finally:
        own.data = kept
