# SPDX-License-Identifier: Apache-2.0
"""The parts of a network that are mended one after the other, with what goes in and what should come out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rarefy.loops.blocks import blocks_of, record
from rarefy.loops.modes import evaluating
from rarefy.loops.replay import Reached
from rarefy.select import Layer
from rarefy.task import Inputs, call, tensors_of


@dataclass(frozen=True)
class Unit:
    """A block, or a layer that stands in none.

    Attributes:
        path: of the module.
        layers: with quantised weight inside, each behind it the others that share it.
    """

    path: str
    layers: list[list[Layer]]


@dataclass(frozen=True)
class Sample:
    """One batch as a unit sees it.

    Attributes:
        rounded: arguments in the network whose earlier parts are rounded already.
        exact: arguments in the float network.
        target: what the unit gives there.
        size: examples.
    """

    rounded: Any
    exact: Any
    target: Tensor
    size: int

    def take(self, places: Tensor) -> "Sample":
        """Some of the examples."""

        def chosen(t: Tensor) -> Tensor:
            return t[places] if t.dim() and t.shape[0] == self.size else t

        rounded, exact = (
            pytree.tree_map_only(Tensor, chosen, x) for x in (self.rounded, self.exact)
        )
        return Sample(rounded, exact, chosen(self.target), len(places))


def units_of(
    model: nn.Module, example: Inputs, layers: list[list[Layer]], by_block: bool
) -> list[Unit]:
    """Blocks and remaining layers in the order in which they run; what runs more than once is left out.

    Args:
        model: runs once.
        example: a batch.
        layers: with quantised weight.
        by_block: False makes every layer a unit of its own.
    """
    blocks = [block.name for block in blocks_of(model, example)] if by_block else []
    held: dict[str, list[list[Layer]]] = {}
    for shared in layers:
        name = shared[0].name
        home = next((b for b in blocks if name == b or name.startswith(f"{b}.")), name)
        held.setdefault(home, []).append(shared)
    modules = {model.get_submodule(path): path for path in held}
    calls = record(model, example, modules)
    return [Unit(modules[m], held[modules[m]]) for m, seen in calls.items() if len(seen) == 1]


@torch.no_grad()
def samples_of(
    path: str, model: nn.Module, reference: nn.Module, batches: Iterable[Inputs]
) -> list[Sample]:
    """What a unit is given and what it should give, batch by batch; passes stop behind the unit.

    Args:
        path: of the unit, in both networks.
        model: rounded up to the unit.
        reference: float.
        batches: on the networks' device.
    """
    found = []
    for inputs in batches:
        rounded, _ = seen_by(path, model, inputs)
        exact, target = seen_by(path, reference, inputs)
        found.append(Sample(rounded, exact, tensors_of(target)[0], len(tensors_of(inputs)[0])))
    return found


def seen_by(path: str, model: nn.Module, inputs: Inputs) -> tuple[Any, Any]:
    """Arguments and output of a module in one pass."""
    seen: list[Any] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        # clones, because what follows may work in place
        seen.append(pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(pytree.tree_map_only(Tensor, Tensor.clone, output))
        raise Reached

    module = model.get_submodule(path)
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        with evaluating(model):
            call(model, inputs)
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], seen[1]
