# SPDX-License-Identifier: Apache-2.0
"""Which data may be looked at while a network is compressed, and which methods can do with that.

Four levels: none at all, a few unlabelled examples, all inputs without labels, everything. A task is
guarded, not trusted: what a level does not allow raises when it is touched.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from rarefy.errors import TaskError, nearest
from rarefy.methods import METHODS
from rarefy.recipe import Recipe, method
from rarefy.step import Step
from rarefy.task import Task, split, tensors_of

Access = Literal["none", "few", "unlabelled", "full"]
LEVELS: tuple[Access, ...] = get_args(Access)
FEW = 128
"""Examples that the level "few" allows."""

_OFFERS: dict[Access, frozenset[str]] = {
    "none": frozenset(),
    "few": frozenset({"calibration"}),
    "unlabelled": frozenset({"calibration", "train"}),
    "full": frozenset({"calibration", "train", "labels"}),
}


class Forbidden:
    """Stands in the place of batches and raises when they are read."""

    def __init__(self, role: str, access: Access) -> None:
        self.role, self.access = role, access

    def __iter__(self) -> Iterator[Any]:
        raise TaskError(
            f"data: {self.access} does not allow {self.role} batches to be read; take a method that does "
            "without, or allow more data"
        )


class Inputs:
    """Batches without their labels, and no more examples than allowed."""

    def __init__(self, batches: Iterable[Any], labelled: bool, most: int | None) -> None:
        self.batches, self.labelled, self.most = batches, labelled, most

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for raw in self.batches:
            inputs, _ = split(raw, self.labelled)
            first = tensors_of(inputs)[0]
            if self.most is not None and seen + len(first) > self.most:
                return
            seen += len(first)
            yield inputs


def guarded(task: Task, access: Access) -> Task:
    """The task with nothing in it that the level does not allow; "full" gives the task itself.

    The example, which says only what inputs look like, becomes noise of its shape below "few".

    Raises:
        TaskError: no such level.
    """
    if access not in LEVELS:
        raise TaskError(f"data: '{access}' is no level{nearest(access, LEVELS)}")
    if access == "full":
        return task
    calibration: Iterable[Any] | None = task.calibration or task.train or task.validation
    train: Iterable[Any] | None = Forbidden("train", access)
    if access == "unlabelled" and task.train is not None:
        train = Inputs(task.train, task.labelled, None)
    if access == "none" or calibration is None:
        calibration = Forbidden("calibration", access)
    else:
        most = FEW if access == "few" else None
        calibration = Inputs(calibration, task.labelled, most)
    sealed = Forbidden("validation", access)
    return dataclasses.replace(
        task,
        train=train,
        validation=sealed,
        test=sealed,
        calibration=calibration,
        labelled=False,
        example=noise_like(task.example) if access == "none" else task.example,
    )


def noise_like(example: Any) -> Any:
    """Inputs of the same structure, shapes and dtypes that hold noise, or zeros where they are integers."""
    import torch

    if isinstance(example, torch.Tensor):
        return (
            torch.randn(example.shape, dtype=example.dtype)
            if example.is_floating_point()
            else torch.zeros_like(example)
        )
    if isinstance(example, dict):
        return {key: noise_like(value) for key, value in example.items()}
    return type(example)(noise_like(value) for value in example)


def fitting(access: Access) -> list[str]:
    """Names of the methods whose needs the level covers, as they are with their default settings."""
    return [name for name in METHODS if needs_of(method(name)) <= _OFFERS[access]]


def needs_of(kind: type[Step]) -> frozenset[str]:
    """What a method needs with its default settings."""
    required = any(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(kind)
    )
    return kind.needs if required else kind().needs


def allowed(recipe: Recipe, access: Access) -> list[str]:
    """Complaints about steps of a recipe that need more than the level offers; empty if there are none."""
    return [
        f"{step.key()} needs {', '.join(sorted(step.needs - _OFFERS[access]))}"
        for step in recipe.steps
        if not step.needs <= _OFFERS[access]
    ]
