# SPDX-License-Identifier: Apache-2.0
"""One training loop for every method: it yields batches and steps the optimiser; the method owns the loss."""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rarefy.errors import ModelError, TaskError
from rarefy.loops.heap import kept_blocks
from rarefy.loops.optimise import Average, Training, build_optimiser, rate_factor
from rarefy.loops.progress import bar
from rarefy.loops.resizing import resized
from rarefy.loops.state import Run, Watch, conclude, finish_epoch
from rarefy.task import Inputs, move, split


@dataclass
class Batch:
    """One batch of a training, on the model's device.

    Attributes:
        model: the network to call: the one being trained, wrapped for many processes where there are many.
        inputs, targets: as the task gives them; targets are None without labels.
        epoch: counted from 0.
        progress: share of the whole training done before this batch, in [0, 1].
    """

    model: Callable[..., Any]
    inputs: Inputs
    targets: Any
    epoch: int
    progress: float
    loss: Tensor | None = field(default=None, repr=False)

    def minimise(self, loss: Tensor) -> None:
        """Hands over the scalar whose gradient the loop shall follow."""
        self.loss = loss


def train(
    model: nn.Module,
    batches: Iterable[Any],
    settings: Training,
    *,
    seed: int = 0,
    labelled: bool = True,
    watch: Watch | None = None,
    parameters: Iterable[Tensor] | None = None,
) -> Iterator[Batch]:
    """Yields every batch of a training; after each the loss handed to `Batch.minimise` is descended.

    Runs on Accelerate: mixed precision, and data-parallel processes under ``accelerate launch``. The order
    of the data depends on `seed` and the epoch alone, so a training that is cut short and started again
    with the same folder goes on after the last finished epoch and ends in the same weights.

    Args:
        model: trained in place, on its own device; left in eval mode.
        batches: iterated once an epoch.
        settings: hyper-parameters.
        seed: of shuffling, augmentation, dropout.
        labelled: whether batches carry targets.
        watch: progress, evaluation, checkpoint.
        parameters: what the optimiser moves; default: all of the model's.

    Raises:
        ModelError: the loss is not finite.
        TaskError: there is no batch.

    Examples:
        for batch in train(model, task.batches("train"), Training(epochs=3)):
            batch.minimise(task.loss(call(batch.model, batch.inputs), batch.targets))
    """
    watch, device = watch or Watch(), next(model.parameters()).device
    accelerator = accelerator_for(device, settings.precision)
    chosen: list[Tensor] = list(model.parameters() if parameters is None else parameters)
    optimiser = build_optimiser(chosen, settings)
    average = Average(model, settings.average) if settings.average else None
    run = Run(model, optimiser, average, signature(model, settings, seed))
    run.load(watch)
    if isinstance(batches, DataLoader) and accelerator.num_processes > 1:
        batches = accelerator.prepare(batches)
    total = steps_of(batches)
    with (
        prepared(accelerator, model, optimiser) as (wrapped, stepper),
        bar(watch.label, total * settings.epochs) as advance,
        kept_blocks() if device.type == "cpu" else nullcontext(),
    ):
        descent = Descent(accelerator, wrapped, stepper, chosen, settings)
        advance(run.epoch * total)
        while run.epoch < settings.epochs and not run.stopped(settings):
            started, losses = time.monotonic(), torch.zeros((), device=device)
            model.train()
            torch.manual_seed(epoch_seed(seed, run.epoch))
            examples = (move(split(raw, labelled), device) for raw in mine(batches, accelerator))
            for batch in descent.batches(examples, run.epoch, total):
                yield batch
                losses += descent.step(batch, watch.label)
                if average:
                    average.update(model)
                if watch.after_step:
                    watch.after_step()
                advance(1, f"epoch {run.epoch + 1}/{settings.epochs}")
            finish_epoch(run, watch, settings, float(losses) / total, time.monotonic() - started)
    conclude(run, watch)


def accelerator_for(device: torch.device, precision: str) -> Any:
    """Accelerate with this training's precision, whatever an earlier training in the process used."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the processes stay connected; the precision may differ
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")


@contextmanager
def prepared(
    accelerator: Any, model: nn.Module, optimiser: torch.optim.Optimizer
) -> Iterator[tuple[nn.Module, Any]]:
    """Network and optimiser as Accelerate runs them; afterwards the network is as it was, but trained."""
    own = vars(model)
    before = dict(own)
    both = accelerator.prepare(model, optimiser)
    changed = [name for name in own if name not in before or own[name] is not before[name]]
    try:
        yield both
    finally:
        for name in changed:
            own.pop(name, None)
        own |= {name: before[name] for name in changed if name in before}


def steps_of(batches: Iterable[Any]) -> int:
    """Batches in one epoch.

    Raises:
        TaskError: the loader is empty.
    """
    total = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if total == 0:
        raise TaskError("there is no batch to train on: the loader is empty")
    return total


def mine(batches: Iterable[Any], accelerator: Any) -> Iterable[Any]:
    """This process's share of batches that Accelerate could not shard itself."""
    if accelerator.num_processes == 1 or isinstance(batches, DataLoader):
        return batches
    return itertools.islice(batches, accelerator.process_index, None, accelerator.num_processes)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch, unrelated between neighbouring seeds and epochs."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "little")


def signature(model: nn.Module, settings: Training, seed: int) -> str:
    """What a checkpoint must agree with: settings, seed and the names, shapes and values at the start."""
    digest = hashlib.sha256(f"{dataclasses.asdict(settings)}|{seed}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).double().sum().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Descent:
    """Moves the weights along the gradient of a batch's loss.

    Attributes:
        accelerator: of Accelerate.
        model, optimiser: as it wrapped them.
        parameters: that are moved.
        settings: hyper-parameters.
    """

    accelerator: Any
    model: Any
    optimiser: Any
    parameters: list[Tensor]
    settings: Training

    def set_rate(self, progress: float) -> None:
        """Sets the learning rate for a point of the training in [0, 1]."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * rate_factor(self.settings, progress)

    def batches(
        self, examples: Iterable[tuple[Inputs, Any]], epoch: int, total: int
    ) -> Iterator[Batch]:
        """An epoch's `total` batches, with the learning rate set and images resized for each."""
        for index, (inputs, targets) in enumerate(examples):
            progress = min((epoch + index / total) / self.settings.epochs, 1.0)
            self.set_rate(progress + 0.5 / total / self.settings.epochs)
            inputs = resized(inputs, progress, self.settings.resolution)
            yield Batch(self.model, inputs, targets, epoch, progress)

    def step(self, batch: Batch, label: str) -> Tensor:
        """One step along the gradient; returns the loss.

        Raises:
            ModelError: the method handed over no loss, or one that is not finite.
        """
        if batch.loss is None:
            raise ModelError(f"'{label}' handed no loss to Batch.minimise for a batch")
        loss = batch.loss.detach()
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"the loss of '{label}' became {float(loss)} in epoch {batch.epoch + 1}; "
                "lower the learning rate, clip the gradient, or look for NaN in weights and data"
            )
        self.optimiser.zero_grad()
        self.accelerator.backward(batch.loss)
        if self.settings.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        batch.loss = None
        return loss
