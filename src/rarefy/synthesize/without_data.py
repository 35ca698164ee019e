# SPDX-License-Identifier: Apache-2.0
"""Distillation when the data are gone: inputs are made from what the original remembers of them.

Lopes, Fenu, Starner: Data-Free Knowledge Distillation for Deep Neural Networks, 2017, arXiv 1710.07535
(recorded activations, inputs by gradient descent); Chen et al.: Data-Free Learning of Student Networks, 2019,
arXiv 1904.01186 (a generator).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.errors import TaskError
from rarefy.loops.repair import repair
from rarefy.loops.training import TrainedStep
from rarefy.measure.quality import batches_of
from rarefy.step import Context, Count, Positive
from rarefy.synthesize.generate import generated, train_generator
from rarefy.synthesize.invert import Search, invert
from rarefy.synthesize.records import Records, from_norms, record
from rarefy.task import Task

RECORDED = 512  # calibration examples that are recorded where nothing else is known


@dataclass(frozen=True)
class DistillWithoutData(TrainedStep):
    """Makes inputs that the original takes for its training data, and trains the network on its answers.

    What the training data did in the original comes from a file of records (`rarefy.synthesize.records`),
    else from the running statistics of its batch norms, else, for networks without any, from records that
    are made of the task's calibration data now. No other data are read.

    Attributes:
        records: file that `Records.save` has written; default: see above.
        source: of inputs: ``"inversion"`` (gradient descent on each), or a ``"generator"`` that learns to
            make them.
        examples: how many inputs are made.
        batch: inputs that are made at once, and in a batch of the training.
        steps: of the search for a batch, or of the generator's training.
        search_rate: of Adam on the inputs; the generator takes a tenth.
        smoothness: weight of the total variation of images.
        temperature: softens answers.
        epochs, rate: of the training.
        optimiser, schedule, warmup, weight_decay, momentum, clip, average, patience, precision, state_bits,
            resolution: see `rarefy.loops.optimise.Training`.
    """

    records: str | None = None
    source: Literal["inversion", "generator"] = "inversion"
    examples: Count = 512
    batch: Annotated[int, Field(ge=2)] = 128
    steps: Count = 200
    search_rate: Positive = 0.1
    smoothness: Annotated[float, Field(ge=0)] = 0.0
    temperature: Positive = 4.0

    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"dense", "mask", "codebook"})

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Makes the inputs, then trains in place.

        Raises:
            TaskError: the inputs are no single tensor of numbers, or nothing is known of the data.
        """
        example = context.task.example
        if not isinstance(example, Tensor) or not example.is_floating_point():
            raise TaskError(
                f"{self.key()} makes inputs that are one tensor of floating-point numbers, and task "
                f"'{context.task.name}' takes {type(example).__name__}"
            )
        made = self.inputs(example, context)
        draw = torch.Generator().manual_seed(context.seed)
        batches = DataLoader(TensorDataset(made), self.batch, shuffle=True, generator=draw)
        task = Task(f"{context.task.name} (made)", example=example, train=batches, labelled=False)
        blind = dataclasses.replace(context, task=task)
        T = self.temperature
        return repair(model, blind, self.training(), alpha=1.0, temperature=T, label=self.key())

    def inputs(self, example: Tensor, context: Context) -> Tensor:
        """The inputs, (examples, …), on the CPU."""
        teacher, records = context.teacher, self.known(context)
        search = Search(self.steps, self.search_rate, smoothness=self.smoothness)
        draw = torch.Generator().manual_seed(context.seed)
        sizes = [self.batch] * (self.examples // self.batch)
        if self.examples % self.batch > 1 or not sizes:
            sizes.append(max(self.examples % self.batch, 2))
        shape = tuple(example.shape[1:])
        if self.source == "inversion":
            made = [invert(teacher, records, (n, *shape), search, draw) for n in sizes]
        else:
            maker = train_generator(teacher, records, (self.batch, *shape), search, draw)
            made = [generated(maker, n, draw) for n in sizes]
        return torch.cat(made).cpu()

    def known(self, context: Context) -> Records:
        """What is known of the training data.

        Raises:
            TaskError: nothing.
        """
        if self.records is not None:
            return Records.load(Path(self.records))
        found = from_norms(context.teacher)
        if found is not None:
            context.record["source"] = "batch norms"
            return found
        task = context.task
        if all(b is None for b in (task.calibration, task.train, task.validation)):
            raise TaskError(
                f"{self.key()}: {type(context.teacher).__name__} has no batch norm that remembers its "
                "training data, and there are no records; give a file with records="
            )
        context.record["source"] = "calibration data"
        return record(context.teacher, batches_of(task, "calibration", RECORDED))
