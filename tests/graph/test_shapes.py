# SPDX-License-Identifier: Apache-2.0
"""Rules of operators that move positions, against the same operators run on labels of full size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.cuts import halves_and_agrees, seen
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.graph.book import Book
from rarefy.graph.fields import Fields
from rarefy.graph.follow import Operators
from rarefy.graph.labels import FIXED

SHAPE = (2, 4, 6)


def carried(
    operator: Callable[..., Any], labels: list[Tensor], shape: tuple[int, ...] = SHAPE
) -> tuple[Book, list[Fields], Any]:
    """What the results of an operator carry if each operand is a tensor of `shape` with given labels."""
    book = Book(nn.Module())
    book.labels.fresh(1000)
    tensors = [torch.zeros(shape) for _ in labels]
    for tensor, own in zip(tensors, labels, strict=True):
        book.put(tensor, [own])
    with Operators(book):
        results = operator(*tensors)
    outs = list(results) if isinstance(results, (tuple, list)) else [results]
    return book, [book.fields(out) for out in outs], [out.shape for out in outs]


def along(axis: int, start: int = 0) -> Tensor:
    """Labels 10, 11, … along one axis of `SHAPE`."""
    n = SHAPE[axis]
    return torch.arange(10 + start, 10 + start + n).reshape(
        [n if i == axis else 1 for i in range(3)]
    )


MOVES: dict[str, Callable[[Tensor], Any]] = {
    "permute": lambda t: t.permute(1, 2, 0),
    "transpose": lambda t: t.transpose(1, 2),
    "transpose in place": lambda t: t.clone().transpose_(1, 2),
    "movedim": lambda t: t.movedim(2, 0),
    "slice": lambda t: t[:, 1:3],
    "step": lambda t: t[:, :, 1::2],
    "select": lambda t: t[1],
    "narrow": lambda t: t.narrow(2, 1, 3),
    "split": lambda t: t.split(2, 1),
    "split unevenly": lambda t: t.split([1, 5], 2),
    "chunk": lambda t: t.chunk(2, 2),
    "unbind": lambda t: t.unbind(1),
    "unsqueeze": lambda t: t.unsqueeze(1),
    "unsqueeze in place": lambda t: t.clone().unsqueeze_(0),
    "squeeze": lambda t: t[:, :1].squeeze(1),
    "flip": lambda t: t.flip(1, 2),
    "roll": lambda t: t.roll((1, 2), (1, 2)),
    "roll as one": lambda t: t.roll(5),
    "repeat": lambda t: t.repeat(2, 1, 3),
    "expand": lambda t: t.unsqueeze(1).expand(-1, 3, -1, -1),
    "unfold": lambda t: t.unfold(2, 3, 1),
    "diagonal": lambda t: t.diagonal(0, 1, 2),
    "rot90": lambda t: t.rot90(1, (1, 2)),
    "flatten": lambda t: t.flatten(1),
    "unflatten": lambda t: t.unflatten(2, (2, 3)),
    "view over axes": lambda t: t.reshape(2, 6, 4),
    "clone": lambda t: t.clone(memory_format=torch.contiguous_format),
    "pointwise": lambda t: t + 0,
    "chain": lambda t: t.view(2, 2, 2, 6).transpose(1, 2).reshape(2, 4, 6).flip(2)[:, 1:],
}


@pytest.mark.parametrize("name", MOVES)
@settings(max_examples=8)
@given(data=st.data())
def test_what_moves_carries_the_labels_of_what_was_moved(name: str, data: st.DataObject) -> None:
    axes = data.draw(st.sets(st.integers(0, 2), min_size=1))
    sizes = [n if i in axes else 1 for i, n in enumerate(SHAPE)]
    total = torch.Size(sizes).numel()
    values = st.lists(st.integers(FIXED, 99), min_size=total, max_size=total)
    labels = torch.tensor(data.draw(values)).reshape(sizes)
    expected = MOVES[name](labels.expand(SHAPE).clone())
    _, found, shapes = carried(MOVES[name], [labels])
    parts = list(expected) if isinstance(expected, (tuple, list)) else [expected]
    for fields, full, shape in zip(found, parts, shapes, strict=True):
        assert full.shape == shape
        if fields:
            (only,) = fields
            assert torch.equal(only.expand(shape), full)
        else:
            assert full.numel() <= 1 or bool((full == full.reshape(-1)[0]).all())


def test_along_the_axis_of_a_concatenation_labels_stand_side_by_side() -> None:
    book, ((found,),), (shape,) = carried(
        lambda a, b: torch.cat([a, b[:, 1:]], 1), [along(1), along(1, 20)]
    )
    assert found.expand(shape)[0, :, 0].tolist() == [10, 11, 12, 13, 31, 32, 33]
    book.labels.flush()
    assert bool(book.labels.free.all())
    assert book.labels.roots.tolist() == list(range(book.labels.count))


def test_across_it_they_are_united() -> None:
    for operator in (lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.stack([a, b], 1)):
        book, (fields,), _ = carried(operator, [along(2), along(2, 20)])
        book.labels.flush()
        assert book.labels.roots[10:16].tolist() == book.labels.roots[30:36].tolist()
        assert len(fields) == 1


def test_a_part_without_labels_holds_fixed_positions() -> None:
    _, ((found,),), _ = carried(lambda a: torch.cat([a, torch.ones(2, 3, 6)], 1), [along(1)])
    assert found[0, :, 0].tolist() == [10, 11, 12, 13, FIXED, FIXED, FIXED]


def test_a_part_without_labels_fixes_the_others_across_it() -> None:
    book, _, _ = carried(lambda a: torch.cat([a, torch.ones(2, 3, 6)], 1), [along(2)])
    book.labels.flush()
    assert not book.labels.free[10:16].any()


def test_padding_is_fixed() -> None:
    _, ((found,),), _ = carried(lambda t: F.pad(t, (0, 0, 2, 1)), [along(1)])
    assert found.expand(2, 7, 6)[0, :, 0].tolist() == [FIXED, FIXED, 10, 11, 12, 13, FIXED]
    _, ((found,),), _ = carried(lambda t: F.pad(t, (2, 1)), [along(1)])
    assert found.reshape(-1).tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    "operator",
    [
        lambda t: t.softmax(1),
        lambda t: t.cumsum(1),
        lambda t: t.sort(1),
        lambda t: t.topk(2, 1),
        lambda t: t.argmax(1),
        lambda t: t.index_select(1, torch.tensor([0, 2])),
        lambda t: t[:, torch.tensor([0, 2, 2])],
        lambda t: t.gather(1, torch.zeros(2, 1, 6, dtype=torch.long)),
        lambda t: t.max(1),
        lambda t: t[t < 1],
    ],
)
def test_where_every_position_matters_to_the_others_none_can_go(operator: Any) -> None:
    book, found, shapes = carried(operator, [along(1)])
    book.labels.flush()
    assert not book.labels.free[10:14].any()
    assert not any(f.shape[1] == 4 for fields in found for f in fields)


@pytest.mark.parametrize(
    "operator",
    [
        lambda t: t.softmax(1),
        lambda t: t.cumsum(1),
        lambda t: t.topk(2, 1).values,
        lambda t: t.argmax(1),
        lambda t: t.index_select(1, torch.tensor([0, 2])),
        lambda t: t[:, torch.tensor([0, 2, 2])],
        lambda t: t.max(1).values,
        lambda t: t.sum(1),
        lambda t: t.mean((0, 1), keepdim=True),
        lambda t: t.amax(1),
        lambda t: t.norm(dim=1),
    ],
)
def test_along_the_other_axes_labels_go_on(operator: Any) -> None:
    book, ((found,),), (shape,) = carried(operator, [along(2)])
    assert found.shape[-1] == shape[-1] == 6
    assert found.reshape(-1).tolist() == list(range(10, 16))
    book.labels.flush()
    assert bool(book.labels.free.all())


def test_a_sum_over_everything_carries_nothing() -> None:
    book, found, _ = carried(lambda t: t.sum(), [along(1)])
    assert found == [()]
    book.labels.flush()
    assert bool(book.labels.free.all())


def test_what_is_written_over_is_cut_as_what_is_written() -> None:
    def write(a: Tensor, b: Tensor) -> Tensor:
        return a.copy_(b)

    book, (fields,), _ = carried(write, [along(2), along(2, 20)])
    assert len(fields) == 1
    book.labels.flush()
    assert book.labels.roots[10:16].tolist() == book.labels.roots[30:36].tolist()


def test_one_tensor_seen_twice_keeps_apart_what_lies_apart() -> None:
    """Views of one storage with other shapes or offsets carry labels of their own."""
    _, found, _ = carried(lambda t: (t[:, :2], t[:, 2:], t), [along(1)])
    assert [f[0].reshape(-1).tolist() for f in found] == [[10, 11], [12, 13], [10, 11, 12, 13]]


class Looked(nn.Module):
    """An embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


def test_columns_of_an_embedding_go_and_rows_stay() -> None:
    x = torch.randint(0, 10, (2, 5))
    assert seen(Looked(), x) == {"table": (6, {"table.weight:1": 6, "head.weight:1": 6})}
    model = Looked()
    halves_and_agrees(model, x)
    assert model.table.weight.shape == (10, 3)
    assert model.table.embedding_dim == 3


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        return self.head(y + self.layer(y))


def test_a_tied_table_is_cut_once_and_stays_tied() -> None:
    model, x = Tied(), torch.randint(0, 10, (2, 5))
    expected = {"table.weight:1": 6, "layer.weight:0": 6, "layer.weight:1": 6, "layer.bias:0": 6}
    assert seen(model, x) == {"table": (6, expected)}
    halves_and_agrees(model, x)
    assert model.head.weight is model.table.weight
    assert model.head.weight.shape == (10, 3)
    assert (model.head.in_features, model.head.out_features) == (3, 10)


class Flat(nn.Module):
    """Space and channels become one axis before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6 * 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_behind_a_flatten_a_channel_is_a_run_of_columns() -> None:
    model, x = Flat(), torch.randn(2, 3, 3, 4)
    found = seen(model, x)
    assert found == {"conv": (6, {"conv.weight:0": 6, "conv.bias:0": 6, "head.weight:1": 72})}
    halves_and_agrees(model, x)
    assert model.head.weight.shape == (2, 36)
