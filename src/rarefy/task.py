# SPDX-License-Identifier: Apache-2.0
"""What a network is for: example inputs, batches, a loss and a metric."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.batches import changed, mapped
from rarefy.errors import TaskError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Metric:
    """A number averaged over examples.

    Attributes:
        name: printed in tables, for example ``"accuracy"``.
        per_example: ``(outputs, targets) -> (B,)`` scores, one for each example of a batch.
        higher_is_better: direction; an accuracy is, a perplexity is not.
        finish: maps the mean over all examples to the printed number (``math.exp`` for perplexity).
    """

    name: str
    per_example: Callable[[Any, Any], Tensor]
    higher_is_better: bool = True
    finish: Callable[[float], float] = float

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is than `before`, in the metric's own unit; negative if better."""
        return before - after if self.higher_is_better else after - before


def logits_of(outputs: Any) -> Tensor:
    """The tensor that a loss reads: the output itself, its ``.logits``, or the first of several."""
    if isinstance(outputs, Tensor):
        return outputs
    if hasattr(outputs, "logits"):
        return outputs.logits
    first = next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0]
    return logits_of(first)


def check_labels(logits: Tensor, targets: Any) -> None:
    """Refuses labels that are no tensor, or for which there is no output.

    Args:
        logits: (B, classes, ...).
        targets: (B, ...) class indices.

    Raises:
        TaskError: says which label, and how many outputs there are.
    """
    if not isinstance(targets, Tensor):
        raise TaskError(
            f"labels are of type {type(targets).__name__}; yield (inputs, tensor of class indices)"
        )
    largest = int(targets.max()) if targets.numel() and not targets.is_floating_point() else -1
    if logits.dim() > 1 and largest >= logits.shape[1]:
        raise TaskError(
            f"label {largest} does not fit a network with {logits.shape[1]} outputs, which knows labels "
            f"0 to {logits.shape[1] - 1}; build it with {largest + 1} classes or more, or count from 0"
        )


def correct(outputs: Any, targets: Tensor) -> Tensor:
    """1.0 where the largest logit (last axis of a 2-d output, axis 1 otherwise) is the target."""
    logits = logits_of(outputs)
    check_labels(logits, targets)
    hits = (logits.argmax(1) == targets).float()
    return hits.flatten(1).mean(1) if hits.dim() > 1 else hits


def same_answer(outputs: Any, reference: Any) -> Tensor:
    """1.0 where the network and the reference answer alike; cosine for outputs that are no classes."""
    ours, theirs = logits_of(outputs).flatten(1), logits_of(reference).flatten(1)
    if logits_of(outputs).dim() == 2 and ours.shape[1] > 1:
        return (ours.argmax(1) == theirs.argmax(1)).float()
    return F.cosine_similarity(ours, theirs, dim=1)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross-entropy between logits and class indices."""
    logits = logits_of(outputs)
    try:
        return F.cross_entropy(logits, targets)
    except (IndexError, TypeError):  # asked only then: the largest label costs a GPU a wait
        check_labels(logits, targets)
        raise


ROLES = ("train", "validation", "test", "calibration")
accuracy = Metric("accuracy", correct)
agreement = Metric("agreement", same_answer)


@dataclass(frozen=True)
class Task:
    """What the network is for.

    Every collection of batches can be iterated again and again; a batch is ``(inputs, targets)`` or,
    where there are no labels, ``inputs`` alone. Inputs are a tensor, a tuple of tensors (positional
    arguments) or a mapping (keyword arguments), batch first. Any ``torch.utils.data.DataLoader`` will do.

    Attributes:
        name: appears in reports.
        example: inputs of one small batch, used to look at the network and to export it.
        train: batches to learn from, or None.
        validation: held-back batches on which choices are made, or None.
        test: batches on which results are stated and nothing is chosen; default: `validation`.
        calibration: unlabelled or labelled batches for ranges and moments; default: the first of `train`.
        loss: ``(outputs, targets) -> scalar``.
        metric: how good an output is; without labels the agreement with the original network.
        labelled: whether batches carry targets.
        classes: names of the classes, if the task is a classification.
        fingerprint: changes when the data change; part of the key under which stages are cached.

    Examples:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x, y = torch.randn(8, 3), torch.arange(8) % 2
        >>> batches = DataLoader(TensorDataset(x, y), batch_size=4)
        >>> Task("toy", example=x[:1], train=batches, validation=batches).labelled
        True
    """

    name: str
    example: Inputs
    train: Iterable[Any] | None = None
    validation: Iterable[Any] | None = None
    test: Iterable[Any] | None = None
    calibration: Iterable[Any] | None = None
    loss: Loss = cross_entropy
    metric: Metric = accuracy
    labelled: bool = True
    classes: tuple[str, ...] | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.test is None:
            object.__setattr__(self, "test", self.validation)
        if not self.labelled:
            object.__setattr__(self, "metric", agreement)
        if not tensors_of(self.example):
            raise TaskError(
                f"task '{self.name}' has no tensor in its example but {type(self.example).__name__}; "
                "give Task(example=inputs of one small batch)"
            )
        pairs = not self.labelled and isinstance(self.example, tuple) and len(self.example) == 2
        for role in ROLES:
            batches = getattr(self, role)
            if pairs and batches is not None:  # of inputs, not of inputs and targets
                object.__setattr__(self, role, changed(batches, _unlabelled))
            if isinstance(batches, Sized) and len(batches) == 0:
                raise TaskError(f"task '{self.name}' has no {role} batches: its loader is empty")

    def batches(self, role: str) -> Iterable[Any]:
        """The batches of a role ('train', 'validation', 'test', 'calibration').

        Raises:
            TaskError: the task has none, with the field to fill.
        """
        found = getattr(self, role)
        if found is None and role == "calibration":
            found = self.train if self.train is not None else self.validation
        if found is None:
            raise TaskError(f"task '{self.name}' has no {role} data: give Task({role}=...)")
        return found

    def identity(self) -> str:
        """A hash of what makes this task this task: its name, fingerprint and example inputs."""
        digest = hashlib.sha256(f"{self.name}|{self.fingerprint}|{self.metric.name}".encode())
        for tensor in tensors_of(self.example):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _unlabelled(batch: Any) -> Any:
    """Two inputs that could be taken for inputs and targets, as inputs without targets."""
    alone = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor)
    return (tuple(batch), None) if alone else batch


def split(batch: Any, labelled: bool = True) -> tuple[Inputs, Any]:
    """A batch's inputs and targets; targets are None where the task has no labels.

    Raises:
        TaskError: labels are promised, but the batch is no pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
        return (
            tuple(inputs) if isinstance(inputs, list) else inputs
        ), targets if labelled else None
    if labelled:
        raise TaskError(
            f"a batch of type {type(batch).__name__} carries no labels; yield (inputs, targets) "
            "or declare Task(labelled=False)"
        )
    return (tuple(batch) if isinstance(batch, list) else batch), None


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Calls `model` with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def tensors_of(inputs: Any) -> list[Tensor]:
    """All tensors of an input or an output, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        return [t for value in inputs.values() for t in tensors_of(value)]
    if isinstance(inputs, (tuple, list)):
        return [t for value in inputs for t in tensors_of(value)]
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        return [t for f in dataclasses.fields(inputs) for t in tensors_of(getattr(inputs, f.name))]
    return []


def first_example(inputs: Inputs) -> Inputs:
    """A batch of one."""
    if isinstance(inputs, Tensor):
        return inputs[:1]
    if isinstance(inputs, tuple):
        return tuple(t[:1] for t in inputs)
    return {name: t[:1] for name, t in inputs.items()}


def move(values: Any, device: torch.device) -> Any:
    """The same structure of tensors on `device`."""
    return mapped(values, lambda t: t.to(device, non_blocking=True))
