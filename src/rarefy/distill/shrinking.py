# SPDX-License-Identifier: Apache-2.0
"""A training set that shrinks to the examples that still have something to teach.

Li, Lin, Zhang, Bai, et al.: Knowledge Condensation Distillation, ECCV 2022, arXiv 2207.05409: while the
student learns, the worth of each example's knowledge is estimated and averaged over the epochs, and the next
epochs use the part that ranks highest.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rarefy.batches import mapped
from rarefy.errors import TaskError


class Noting(Sampler[list[int]]):
    """Batches of the indices that another sampler draws and that are kept, with a note of the latest ones."""

    def __init__(self, source: Iterable[list[int]], keep: Tensor, batch: int) -> None:
        self.source, self.keep, self.batch = source, keep, batch
        self.latest: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        kept = [i for drawn in self.source for i in drawn if bool(self.keep[i])]
        for start in range(0, len(kept), self.batch):
            self.latest.append(kept[start : start + self.batch])
            yield self.latest[-1]


class Listed(Dataset[Any]):
    """The examples of a list of batches, one by one."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches
        sizes = [first_size(b) for b in batches]
        self.places = [(b, i) for b, size in enumerate(sizes) for i in range(size)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> Any:
        chosen = [self.places[i] for i in indices]
        rows = [mapped(self.batches[b], lambda t, i=i: t[i : i + 1]) for b, i in chosen]  # type: ignore[misc]
        return joined(rows)


def first_size(batch: Any) -> int:
    """Examples in a batch."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch)


def joined(rows: Sequence[Any]) -> Any:
    """Batches of one put together."""
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.cat(list(rows))
    if isinstance(first, dict):
        return {key: joined([row[key] for row in rows]) for key in first}
    return type(first)(joined(list(column)) for column in zip(*rows, strict=True))


class Shrinking:
    """The batches of a loader, epoch by epoch from fewer examples.

    The first epoch uses all, the last one `share` of them, those between lie on a straight line. An epoch in
    which all are kept is bit for bit that of the loader.

    Args:
        batches: a loader of a data set that can be indexed, or a list of batches.
        share: of the examples in the last epoch, in (0, 1].
        epochs: of the training.

    Raises:
        TaskError: the examples can't be told apart.
    """

    def __init__(self, batches: Iterable[Any], share: float, epochs: int) -> None:
        if isinstance(batches, DataLoader) and batches.batch_sampler is not None:
            self.loader: DataLoader[Any] = batches
        elif isinstance(batches, (list, tuple)):
            listed, size = Listed(batches), first_size(batches[0])
            self.loader = DataLoader(listed, size, collate_fn=lambda rows: rows)
        else:
            raise TaskError(
                f"training data of type {type(batches).__name__} can't shrink, since their examples can't be "
                "told apart; give a DataLoader over an indexed data set or a list of batches"
            )
        self.share, self.epochs, self.epoch = share, epochs, 0
        self.total = len(self.loader.dataset)  # type: ignore[arg-type]
        self.batch = self.loader.batch_size or len(next(iter(self.loader.batch_sampler or [[0]])))
        self.worth = torch.zeros(self.total)
        self.times = torch.zeros(self.total)
        self.noting = Noting([], torch.zeros(0, dtype=torch.bool), self.batch)
        self.judged = 0

    def size(self, epoch: int) -> int:
        """How many examples are used in an epoch, counted from 0."""
        done = epoch / max(self.epochs - 1, 1)
        return max(round(self.total * (1 - (1 - self.share) * done)), 1)

    def steps(self, epoch: int) -> int:
        """How many batches an epoch has."""
        return math.ceil(self.size(epoch) / self.batch)

    def __len__(self) -> int:
        """Batches in the first epoch, the longest."""
        return self.steps(0)

    def kept(self) -> Tensor:
        """Which examples are used now: those of the highest mean worth, (N,) bool."""
        keep = torch.zeros(self.total, dtype=torch.bool)
        mean = self.worth / self.times.clamp(min=1)
        keep[mean.argsort(descending=True, stable=True)[: self.size(self.epoch)]] = True
        return keep

    def __iter__(self) -> Iterator[Any]:
        source = self.loader.batch_sampler
        self.noting, self.judged = Noting(source or [], self.kept(), self.batch), 0
        self.epoch += 1
        yield from DataLoader(
            self.loader.dataset, batch_sampler=self.noting, collate_fn=self.loader.collate_fn,
            num_workers=self.loader.num_workers, generator=self.loader.generator,
        )  # fmt: skip

    def judge(self, worth: Tensor) -> None:
        """Notes how much the examples of the latest batch had to teach, (B,)."""
        indices = self.noting.latest[self.judged]
        self.judged += 1
        self.worth[indices] += worth.detach().float().cpu()
        self.times[indices] += 1
