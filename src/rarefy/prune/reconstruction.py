# SPDX-License-Identifier: Apache-2.0
"""What the methods share that cut a group's units and let the layers behind make up for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from rarefy.measure.quality import batches_of
from rarefy.prune.by_group import Choose, Cutting, prune_by_group, share_of
from rarefy.prune.readers import Reader, sample_rows
from rarefy.step import Context, Count, OpenFraction, Patterns, Step
from rarefy.task import move


@dataclass(frozen=True)
class Reconstruction(Step):
    """Cuts the same share of every group, in the order of the network, from samples of the readers' inputs.

    Attributes:
        sparsity: share of the units of every group that go.
        round_to: the number of channels that stay is a multiple of it.
        examples: calibration examples at most.
        samples: rows of a layer's input that are looked at.
        layers, exclude: whose units go, see `rarefy.select.select`; a group goes if it holds one of
            `layers` and none of `exclude`.
    """

    sparsity: OpenFraction = 0.5
    round_to: Count = 1
    examples: Count = 512
    samples: Count = 4096
    layers: Patterns = "*"
    exclude: Patterns = ()

    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    reads: ClassVar[frozenset[str]] = frozenset({"dense"})

    def cutting(
        self, choose: Choose, after: Callable[[nn.Module, str], Any] | None = None
    ) -> Cutting:
        """The cut that this step makes with the method `choose`."""
        counts = share_of(self.sparsity, self.round_to)
        return Cutting(counts, choose, self.layers, self.exclude, after)

    def prune(self, model: nn.Module, context: Context, cutting: Cutting) -> nn.Module:
        """Chooses, repairs and cuts, one layer after the other."""
        return prune_by_group(model, context, cutting, self.key())


@dataclass(frozen=True)
class Samples:
    """The inputs of readers on the calibration data; every look takes the same entries.

    Attributes:
        step: how many examples and rows.
        context: whose calibration data is read, once.
    """

    step: Reconstruction
    context: Context

    @cached_property
    def batches(self) -> list[Any]:
        """On the network's device."""
        found = batches_of(self.context.task, "calibration", self.step.examples)
        return [move(batch, self.context.device) for batch in found]

    def rows(self, model: nn.Module, readers: Sequence[Reader]) -> list[Tensor]:
        """What each reader gets in `model`, (samples, in) each."""
        return sample_rows(model, readers, self.batches, self.step.samples, self.context.seed)
