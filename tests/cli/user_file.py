# SPDX-License-Identifier: Apache-2.0
"""What users write, right and wrong: networks and tasks for ``user_file.py:NAME``."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rarefy.task import Task

number = 3


def images(classes: int = 10) -> TensorDataset:
    """64 small images that a linear network can learn."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % classes
    return TensorDataset(
        torch.randn(64, 1, 8, 8, generator=draw) + labels.view(-1, 1, 1, 1), labels
    )


def loader(classes: int = 10) -> DataLoader[Any]:
    """Batches of 16."""
    return DataLoader(images(classes), 16)


EXAMPLE: Tensor = images()[:2][0]


def net(outputs: int = 10) -> nn.Module:
    """A linear network, the same every time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


def task() -> Task:
    """A task that fits `net`."""
    return Task("points", EXAMPLE, loader(), loader(), fingerprint="points")


def five() -> nn.Module:
    """Too few outputs for ten classes."""
    return net(5)


def not_finite() -> nn.Module:
    """A weight is NaN."""
    model = net()
    model[1].weight.data[0, 0] = float("nan")  # type: ignore[index, union-attr]
    return model


def raising() -> nn.Module:
    """Fails."""
    raise ValueError("no weights\ntoday")


def seven() -> int:
    """Neither a network nor a task."""
    return 7


def asking(depth: int) -> nn.Module:
    """Wants an argument."""
    return net(depth)


class Broken(nn.Module):
    """Fails where it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc({"a": x}["b"])  # type: ignore[no-any-return]


def broken() -> nn.Module:
    """A network that fails where it is run."""
    return Broken()


def unlabelled() -> Task:
    """Says that there are no labels."""
    inputs = DataLoader(TensorDataset(images().tensors[0]), 16)
    return Task("bare", EXAMPLE, inputs, inputs, labelled=False)


def promising() -> Task:
    """Promises labels and has none."""
    inputs = [images().tensors[0]]
    return Task("bare", EXAMPLE, inputs, inputs)


def empty() -> Task:
    """A loader without batches."""
    return Task("void", EXAMPLE, DataLoader(TensorDataset(torch.zeros(0, 1)), 4), loader())


class Nothing:
    """Batches whose number nobody knows, and there are none."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def nothing() -> Task:
    """Nothing to train on, which shows only when it is asked for."""
    return Task("void", EXAMPLE, Nothing(), loader())


def nothing_to_judge() -> Task:
    """Nothing to measure on."""
    return Task("void", EXAMPLE, loader(), Nothing())


def nan_loss() -> Task:
    """A loss that is NaN."""
    return Task("lossy", EXAMPLE, loader(), loader(), loss=lambda o, t: o.sum() * float("nan"))


def failing_loss() -> Task:
    """A loss that fails."""

    def loss(outputs: Any, targets: Any) -> Tensor:
        raise LookupError("no loss\nfor you")

    return Task("lossy", EXAMPLE, loader(), loader(), loss=loss)


def twenty() -> Task:
    """Twenty classes by name."""
    names = tuple(map(str, range(20)))
    return Task("twenty", EXAMPLE, loader(20), loader(20), classes=names)


def twenty_unnamed() -> Task:
    """Twenty classes that only the labels tell of."""
    return Task("twenty", EXAMPLE, loader(20), loader(20))


class Fatal:
    """Batches that end the process in the third batch of the epoch that STOP_EPOCH says, by STOP_SIGNAL.

    Every epoch adds a line to the file STOP_LOG.
    """

    epoch = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        Fatal.epoch += 1
        with open(os.environ["STOP_LOG"], "a", encoding="utf-8") as log:
            log.write("epoch\n")
        for index, batch in enumerate(loader()):
            if index == 2 and os.environ.get("STOP_EPOCH") == str(self.epoch):
                os.kill(os.getpid(), int(os.environ["STOP_SIGNAL"]))
            yield batch


def fatal() -> Task:
    """A task during whose training the process may be killed."""
    return Task("fatal", EXAMPLE, Fatal(), loader(), calibration=loader(), fingerprint="fatal")
