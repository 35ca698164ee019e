# SPDX-License-Identifier: Apache-2.0
"""The layers that read a group's units: which columns are whose, what they see, and how to change them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rarefy.graph.decisions import difference
from rarefy.graph.groups import Group
from rarefy.graph.masked import outputs_with
from rarefy.graph.proof import TOLERANCE
from rarefy.loops.gather import Side, gather
from rarefy.loops.matrix import groups_of, kind_of, matrix_of, put_matrix
from rarefy.select import Layer, sharing
from rarefy.task import Inputs


@dataclass(frozen=True)
class Reader:
    """A linear layer or convolution that reads the units of a group.

    Attributes:
        layer: which one.
        columns: of its matrix that read each unit, shape (units, columns of one unit); a convolution has as
            many as its kernel has positions, a linear layer behind a flattened map one for each position.
    """

    layer: Layer
    columns: Tensor

    @property
    def matrix(self) -> Tensor:
        """A copy of the weight, float64, (out, in)."""
        return matrix_of(self.layer).double().clone()

    def contributions(self, rows: Tensor, outputs: Tensor) -> Tensor:
        """What each unit adds to one output of each row, shape (N, units).

        Args:
            rows: inputs, (N, in).
            outputs: the output that is looked at in each row, (N,).
        """
        products = rows * self.matrix[outputs]
        return products[:, self.columns].sum(2)

    def activations(self, rows: Tensor) -> Tensor:
        """What each unit gives, as the layer reads it: (N · columns of one unit, units)."""
        return rows[:, self.columns].movedim(2, 1).flatten(0, 1)

    def put(self, matrix: Tensor, shift: Tensor | None = None) -> None:
        """Writes a weight back and adds `shift` (out,) to the bias, which is made if it is needed."""
        put_matrix(self.layer, matrix.to(self.layer.weight.dtype))
        if shift is None or not bool(shift.any()):
            return
        module, weight = self.layer.module, self.layer.weight
        old: Tensor | None = module.bias  # type: ignore[assignment]
        moved = shift if old is None else old.detach().double() + shift
        module.bias = nn.Parameter(moved.to(weight), requires_grad=weight.requires_grad)


def readers_of(model: nn.Module, group: Group) -> list[Reader] | None:
    """The readers of a group, or None if one of them is no plain matrix product of its own weight."""
    found = []
    for member in group.members:
        if member.role != "in":
            continue
        path, _, tensor = member.name.rpartition(".")
        layer = Layer(path, model.get_submodule(path))
        plain = tensor == "weight" and kind_of(layer.module) and groups_of(layer.module) == 1
        if not plain or len(sharing(model, layer)) > 1:
            return None
        width = matrix_of(layer).shape[1] // layer.weight.shape[member.axis]
        owners = torch.full((layer.weight.shape[member.axis],), -1)
        owners[member.places] = member.units
        owners = owners.repeat_interleave(width)
        counts = torch.bincount(owners[owners >= 0], minlength=group.size)
        if int(counts.min()) != int(counts.max()):
            return None
        order = owners.argsort(stable=True)[int((owners < 0).sum()) :]
        found.append(Reader(layer, order.view(group.size, -1)))
    return found or None


def feeds_readers_alone(
    model: nn.Module, group: Group, readers: Sequence[Reader], example: Inputs
) -> bool:
    """Whether units do nothing but what their readers make of them.

    Not so where a layer norm or the like looks at all units together: there it differs whether a unit is not
    read or not there.
    """
    gone = torch.arange(0, group.size, 2)
    held = dict(model.named_parameters())
    unread: dict[str, Tensor] = {}
    absent: dict[str, Tensor] = {}
    names = {f"{r.layer.name}.weight" for r in readers}
    for member in group.members:
        if member.name not in held:
            continue
        places = member.places[torch.isin(member.units, gone)].to(held[member.name].device)
        for values in (unread, absent) if member.name in names else (absent,):
            start = values.get(member.name, held[member.name].detach())
            if values is absent or member.role == "in":
                values[member.name] = start.index_fill(member.axis, places, 0)
    with torch.no_grad():
        pairs = zip(
            outputs_with(model, unread, example), outputs_with(model, absent, example), strict=True
        )
        return all(difference(a, b) <= TOLERANCE for a, b in pairs)


class RowSample:
    """Some rows of every call, the same ones for networks that are fed the same.

    Args:
        number: of rows kept of each call.
        seed: of the draw.
    """

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.draw = torch.Generator().manual_seed(seed)
        self.kept: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Takes rows (N, in) in."""
        chosen = torch.randperm(len(x), generator=self.draw)[: self.number]
        self.kept.append(x.detach()[chosen.to(x.device)].double())

    def rows(self) -> Tensor:
        """All rows kept, float64, (samples, in); (0, 0) if the layer never ran."""
        return torch.cat(self.kept) if self.kept else torch.zeros(0, 0, dtype=torch.float64)


def sample_rows(
    model: nn.Module,
    readers: Iterable[Reader],
    batches: Sequence[Inputs],
    samples: int,
    seed: int,
) -> list[Tensor]:
    """Random input rows of every reader while the network runs, about `samples` of each, (N, in)."""
    layers = [reader.layer.name for reader in readers]
    each = -(-samples // max(len(batches), 1))
    wanted: dict[tuple[str, Side], RowSample] = {
        (name, "rows"): RowSample(each, seed) for name in layers
    }
    gather(model, batches, wanted)
    return [wanted[name, "rows"].rows() for name in layers]
