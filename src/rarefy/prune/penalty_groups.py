# SPDX-License-Identifier: Apache-2.0
"""Which weights are penalised as one: coupled units, or rows, columns and positions of a layer, or blocks.

Wen, Wu, Wang, Chen, Li: Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv 1608.03665:
filters, channels, shapes and depth. Coupled units are groups of a whole network, not of one layer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rarefy.graph.groups import Group
from rarefy.loops.blocks import Block, blocks_of, record
from rarefy.loops.modes import evaluating
from rarefy.prune.penalties import Part
from rarefy.select import Layer
from rarefy.task import Inputs, tensors_of

KINDS = ("filter", "input", "shape")


@dataclass(frozen=True)
class Penalised:
    """Groups of weights.

    Attributes:
        parts: what they have in each parameter.
        number: of groups.
    """

    parts: tuple[Part, ...]
    number: int


def owners_along(places: Tensor, numbers: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Owners of the positions of one axis, -1 where there is none, broadcastable to the tensor."""
    owners = torch.full((tensor.shape[axis],), -1)
    owners[places] = numbers
    return owners.view([-1 if i == axis % tensor.dim() else 1 for i in range(tensor.dim())])


def coupled_units(model: nn.Module, groups: Sequence[Group], roles: Collection[str]) -> Penalised:
    """One group for each unit of coupled groups, numbered through in their order.

    Args:
        model: that was coupled.
        groups: of its coupling.
        roles: which weights count: ``"out"`` that give the unit, ``"along"`` of norms and biases, ``"in"``
            that read it.
    """
    held, parts, first = dict(model.named_parameters()), [], 0
    for group in groups:
        for m in group.members:
            if m.role in roles and m.name in held:
                tensor = held[m.name]
                parts.append(Part(tensor, owners_along(m.places, m.units + first, tensor, m.axis)))
        first += group.size
    return Penalised(tuple(parts), first)


def layer_groups(layers: Sequence[Layer], kind: str) -> Penalised:
    """Groups inside each layer's weight (out, in, …).

    Args:
        layers: any.
        kind: ``"filter"`` (an index of the first axis), ``"input"`` (of the second), ``"shape"`` (of all but
            the first: one weight of every filter).
    """
    parts, first = [], 0
    for layer in layers:
        shape = layer.stored.shape
        one = {"filter": shape[:1], "input": shape[1:2], "shape": shape[1:]}[kind]
        ahead = 0 if kind == "filter" else 1
        behind = len(shape) - ahead - len(one)
        numbers = torch.arange(one.numel()) + first
        parts.append(Part(layer.stored, numbers.view([1] * ahead + list(one) + [1] * behind)))
        first += one.numel()
    return Penalised(tuple(parts), first)


def skipped_blocks(model: nn.Module, example: Inputs) -> list[Block]:
    """The blocks that hand their input on unchanged when all their weights are zero.

    Args:
        model: runs once.
        example: a batch on its device.
    """
    blocks = [b for b in blocks_of(model, example) if b.removable]
    calls = record(model, example, [b.module for b in blocks])
    found = []
    for block in blocks:
        (args, kwargs), module = calls[block.module][0].args, block.module
        zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
        with torch.no_grad(), evaluating(module):
            output = torch.func.functional_call(module, zeros, args, kwargs)
        if torch.equal(tensors_of(output)[0], tensors_of((args, kwargs))[0]):
            found.append(block)
    return found


def block_groups(blocks: Sequence[Block]) -> Penalised:
    """One group for each block, all its weights together."""
    parts = [
        Part(p, torch.full([1] * max(p.dim(), 1), number))
        for number, block in enumerate(blocks)
        for p in block.module.parameters()
    ]
    return Penalised(tuple(parts), len(blocks))


def only(groups: Penalised, chosen: Tensor) -> Penalised:
    """The groups that are marked; the others' weights belong to none.

    Args:
        groups: any.
        chosen: bool, (number,).
    """
    chosen = torch.cat([chosen, torch.zeros(1, dtype=torch.bool)])  # -1 is the last
    parts = [replace(p, owners=p.owners.masked_fill(~chosen[p.owners], -1)) for p in groups.parts]
    return replace(groups, parts=tuple(parts))
