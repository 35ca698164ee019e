# SPDX-License-Identifier: Apache-2.0
"""Networks that take turns: each batch comes once for each of them, so that one loop trains all."""

from collections.abc import Iterable, Iterator
from typing import Any

from rarefy.loops.train import steps_of


class Turns:
    """Every batch several times in a row.

    A loss that reaches only one network leaves the others as they are, since an optimiser passes over
    parameters without a gradient: so the networks are updated in turn, each under what the one before it has
    become, by one optimiser.

    Args:
        batches: of the task.
        turns: how often each of them comes.
    """

    def __init__(self, batches: Iterable[Any], turns: int) -> None:
        self.batches, self.turns = batches, turns

    def __len__(self) -> int:
        return self.turns * steps_of(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            for _ in range(self.turns):
                yield batch
