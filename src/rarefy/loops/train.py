# SPDX-License-Identifier: Apache-2.0
"""One training loop for every method: it yields batches and steps the optimiser; the method owns the loss."""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rarefy.errors import ModelError, TaskError
from rarefy.loops.optimise import Average, Training, build_optimiser, rate_factor
from rarefy.loops.progress import bar
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
    from accelerate import Accelerator

    watch = watch or Watch()
    device = next(model.parameters()).device
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=device.type == "cpu")
    chosen: list[Tensor] = list(model.parameters() if parameters is None else parameters)
    optimiser = build_optimiser(chosen, settings)
    average = Average(model, settings.average) if settings.average else None
    run = Run(model, optimiser, average, signature(model, settings, seed))
    run.load(watch)
    if isinstance(batches, DataLoader) and accelerator.num_processes > 1:
        batches = accelerator.prepare(batches)
    wrapped, stepper = accelerator.prepare(model, optimiser)
    total = steps_of(batches)
    with bar(watch.label, total * settings.epochs) as advance:
        advance(run.epoch * total)
        while run.epoch < settings.epochs and not run.stopped(settings):
            started, losses = time.monotonic(), torch.zeros((), device=device)
            model.train()
            torch.manual_seed(epoch_seed(seed, run.epoch))
            for index, raw in enumerate(mine(batches, accelerator)):
                inputs, targets = split(raw, labelled)
                progress = min((run.epoch + index / total) / settings.epochs, 1.0)
                for group in optimiser.param_groups:
                    group["lr"] = settings.rate * rate_factor(
                        settings, progress + 0.5 / total / settings.epochs
                    )
                batch = Batch(
                    wrapped, move(inputs, device), move(targets, device), run.epoch, progress
                )
                yield batch
                losses += descend(batch, accelerator, stepper, chosen, settings.clip, watch.label)
                if average:
                    average.update(model)
                if watch.after_step:
                    watch.after_step()
                advance(
                    1,
                    f"epoch {run.epoch + 1}/{settings.epochs} rate {optimiser.param_groups[0]['lr']:.2g}",
                )
            finish_epoch(run, watch, settings, float(losses) / total, time.monotonic() - started)
    conclude(run, watch)


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


def descend(
    batch: Batch,
    accelerator: Any,
    optimiser: Any,
    parameters: list[Tensor],
    clip: float | None,
    label: str,
) -> Tensor:
    """One step of the optimiser along the gradient of the batch's loss; returns the loss."""
    if batch.loss is None:
        raise ModelError(f"'{label}' handed no loss to Batch.minimise for a batch")
    loss = batch.loss.detach()
    if not bool(torch.isfinite(loss)):
        raise ModelError(
            f"the loss of '{label}' became {float(loss)} in epoch {batch.epoch + 1}; "
            "lower the learning rate, clip the gradient, or look for NaN in weights and data"
        )
    optimiser.zero_grad()
    accelerator.backward(batch.loss)
    if clip is not None:
        accelerator.clip_grad_norm_(parameters, clip)
    optimiser.step()
    batch.loss = None
    return loss
