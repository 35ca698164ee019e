# SPDX-License-Identifier: Apache-2.0
"""Visits layers in the order in which a network runs them, each with its inputs as they are by then.

A layer's inputs come from running the network up to that layer, so they reflect what was done to the
layers before. Only the network's own inputs, one cut and the inputs of one layer are held at a time. A
pass begins at the latest point that `rarefy.loops.replay` can vouch for and stops at the layer: a chain of
B blocks costs about as many passes as one block has layers, a network whose skip connections span
everything about half a pass for each layer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.errors import TaskError
from rarefy.loops.matrix import check_kinds, kind_of, matrix_of, put_matrix, rows_of
from rarefy.loops.modes import device_of, evaluating, watching
from rarefy.loops.replay import Reached, Replay
from rarefy.select import Layer, sharing
from rarefy.task import Inputs, call, move

PROBE = 2  # examples on which cuts are tried


@dataclass(frozen=True)
class Call:
    """How a module was called: its input, and the output size a transposed convolution was asked for."""

    module: nn.Module
    x: Tensor
    output_size: Sequence[int] | None = None


@dataclass(frozen=True)
class Visit:
    """A layer, its weight as a matrix and its inputs as rows: ``rows @ matrix.mT`` is its output.

    Attributes:
        layer: which one.
        calls: its inputs as they came, one for each batch and call; layers with the same weight included.
    """

    layer: Layer
    calls: list[Call] = field(default_factory=list, repr=False)

    @property
    def matrix(self) -> Tensor:
        """The weight (out, in), or (groups, out / groups, in) of a convolution in groups.

        It may be a view of the weight: read it, and hand a new one to `put`.
        """
        return matrix_of(self.layer)

    def inputs(self) -> Iterator[Tensor]:
        """The rows (N, in), or (groups, N, in), of one call after the other."""
        for one in self.calls:
            yield rows_of(one.module, one.x, one.output_size)

    def put(self, matrix: Tensor) -> None:
        """Writes the weight back, shaped like `matrix`; layers visited later see it at work."""
        put_matrix(self.layer, matrix)


def walk(model: nn.Module, batches: Iterable[Inputs], layers: Sequence[Layer]) -> Iterator[Visit]:
    """Yields every layer that the network runs, first call first, under the layers changed before it.

    A layer that runs several times, or whose weight another layer shares, is visited once, with the
    inputs of all its calls. Layers that no batch reaches are not visited. The network runs in eval mode
    without gradients; no hook outlives a pass, and modes are as before whenever a visit is handed out.
    Two networks of the same structure can be walked side by side with ``zip``.

    Args:
        model: on its device.
        batches: inputs without targets; they are held while the walk lasts.
        layers: linear layers and convolutions.

    Raises:
        ModelError: a layer that is no matrix product.
        TaskError: there is no batch.

    Examples:
        for visit in walk(model, batches_of(task, "calibration"), select(model)):
            energy = sum(rows.square().sum(-2) for rows in visit.inputs())  # (in,)
            visit.put(visit.matrix * (visit.matrix.abs() * energy.sqrt() > 0.1))
    """
    check_kinds(layers)
    inputs = [move(batch, device_of(model)) for batch in batches]
    if not inputs:
        raise TaskError("there is no calibration batch to run the network on")
    family = {layer: matrix_modules(model, layer) for layer in layers}
    modules = [module for group in family.values() for module in group]
    order, most = execution_order(model, inputs, modules)
    replay = Replay(model, inputs, first_examples(inputs[0]), modules)
    place = {layer: min(order.get(m, len(order)) for m in group) for layer, group in family.items()}
    for layer in sorted(layers, key=place.__getitem__):
        group = [m for m in family[layer] if m in order]
        if not group:
            continue
        replay.advance(min(group, key=order.__getitem__))
        once = sum(most[m] for m in group) == 1
        visit = Visit(layer)
        for number in range(len(inputs)):
            visit.calls.extend(calls_in(replay, number, group, once))
        yield visit
        visit.calls.clear()


def matrix_modules(model: nn.Module, layer: Layer) -> list[nn.Module]:
    """The modules that multiply with a layer's weight."""
    return [x.module for x in sharing(model, layer) if kind_of(x.module) and x.tensor == "weight"]


def first_examples(inputs: Inputs) -> Any:
    """The first examples of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[:PROBE]
    if isinstance(inputs, tuple):
        return tuple(x[:PROBE] for x in inputs)
    return {name: x[:PROBE] for name, x in inputs.items()}


def execution_order(
    model: nn.Module, batches: Sequence[Inputs], modules: Sequence[nn.Module]
) -> tuple[dict[nn.Module, int], Counter[nn.Module]]:
    """The place of each module that runs, and how often it runs in a pass at most.

    Where batches take different paths, a module that an earlier batch did not reach is put behind the one
    that ran before it.
    """
    order: list[nn.Module] = []
    most: Counter[nn.Module] = Counter()
    for batch in batches:
        ran: list[nn.Module] = []
        calls = watching(modules, before=lambda place, ran=ran: ran.append(place[0]))  # type: ignore[misc]
        with evaluating(model), torch.no_grad(), calls:
            call(model, batch)
        most |= Counter(ran)
        behind = 0
        for module in ran:
            if module not in order:
                order.insert(behind, module)
            behind = max(behind, order.index(module) + 1)
    return {module: number for number, module in enumerate(order)}, most


def calls_in(replay: Replay, number: int, modules: Sequence[nn.Module], once: bool) -> list[Call]:
    """The calls of some modules in one batch; the pass stops at the first if there is only one."""
    calls: list[Call] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
        calls.append(
            Call(module, x if once else x.clone(), size)
        )  # x may be changed in place later
        if once:
            raise Reached

    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(enter, with_kwargs=True)
            stack.callback(handle.remove)
        replay.forward(number)
        if not calls or any(bool(one.x.isnan().any()) for one in calls):
            # this batch takes a path of its own, on which the cut is of no use
            calls.clear()
            replay.forward(number, plain=True)
    return calls
