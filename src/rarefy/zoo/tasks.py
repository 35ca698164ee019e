# SPDX-License-Identifier: Apache-2.0
"""From what the user wrote as TASK to batches, loss and metric."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rarefy.errors import TaskError, described, nearest

if TYPE_CHECKING:
    from torch import nn

    from rarefy.task import Task

DATA = Path(__file__).parent / "data"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMS = {
    "digits": "digits",
    "random-images": "random-images or random-images:CHANNELSxHEIGHTxWIDTH",
    "mnist": "mnist:FILE.npz or mnist:DIR with the IDX files",
    "fashion-mnist": "fashion-mnist:DIR with the IDX files",
    "cifar10": "cifar10:DIR",
    "imagefolder": "imagefolder:DIR",
    "imagezip": "imagezip:FILE.zip",
}


def split_spec(spec: str) -> tuple[str, str]:
    """The kind and the source of a TASK; checked without importing torch.

    Raises:
        TaskError: unknown kind, or a source that is missing.
    """
    if ".py:" in spec:
        return "python", spec
    kind, _, source = spec.partition(":")
    if kind not in FORMS:
        raise TaskError(f"'{spec}' names no task{nearest(kind, FORMS)}")
    if kind not in ("digits", "random-images"):
        if not source:
            raise TaskError(f"task '{kind}' needs a source: {FORMS[kind]}")
        if not Path(source).exists():
            raise TaskError(f"task '{spec}': there is no '{source}'")
    return kind, source


def load_task(spec: str, model: "nn.Module | None" = None) -> "Task":
    """Builds the task that `spec` names.

    Args:
        spec: ``digits``, ``random-images``, ``mnist:FILE``, ``fashion-mnist:DIR``, ``cifar10:DIR``,
            ``imagefolder:DIR``, ``imagezip:FILE`` or ``path/file.py:callable``.
        model: if given, the number of its outputs is checked against the task's classes.

    Raises:
        TaskError: unknown kind, missing or damaged data, a class count that does not fit.
    """
    kind, source = split_spec(spec)
    if kind == "python":
        task = from_python(source)
    else:
        builders: dict[str, Callable[[str], Task]] = {
            "digits": digits,
            "random-images": random_images,
            "mnist": mnist_task,
            "fashion-mnist": fashion_task,
            "cifar10": cifar10_task,
            "imagefolder": folder_task,
            "imagezip": zip_task,
        }
        task = builders[kind](source)
    if model is not None:
        check_fit(model, task)
    return task


def check_fit(model: "nn.Module", task: "Task") -> None:
    """Runs the example through `model` and compares its outputs with the classes.

    Raises:
        TaskError: the network refuses the inputs, or has too few outputs.
    """
    import torch

    from rarefy.float32 import in_float32
    from rarefy.task import call, logits_of, move

    model, task = in_float32(model, task)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was, shapes = model.training, shapes_of(task)
    try:
        with torch.no_grad():
            outputs = call(model.eval(), move(task.example, device))
        shape = tuple(logits_of(outputs).shape) if task.labelled else ()
    except Exception as error:  # of the user's network, whatever it is
        raise TaskError(
            f"the network does not run on task '{task.name}' (inputs {shapes}): {described(error)}"
        ) from error
    finally:
        model.train(was)
    if not task.classes or not task.labelled:
        return
    wanted, found = len(task.classes), shape[1] if len(shape) > 1 else 0
    if found < wanted:
        raise TaskError(
            f"task '{task.name}' has {wanted} classes but the network has {found} outputs "
            f"(shape {shape}); build it with classes={wanted}"
        )


def shapes_of(task: "Task") -> str:
    """The shapes of the example's tensors, for messages."""
    from rarefy.task import tensors_of

    return ", ".join(str(tuple(t.shape)) for t in tensors_of(task.example))


def from_python(spec: str) -> "Task":
    """The task that the user's callable returns.

    Raises:
        ModelError: the file or the callable failed.
        TaskError: it returned something else.
    """
    from rarefy.task import Task
    from rarefy.zoo.models import from_python as result_of

    task = result_of(spec)
    if not isinstance(task, Task):
        raise TaskError(
            f"'{spec}' returned a value of type {type(task).__name__}; return a rarefy.Task"
        )
    return task


def digits(_: str = "") -> "Task":
    """1,797 handwritten digits of 8 x 8 pixels, embedded: 1,297 to train, 200 held back, 300 to test.

    Source: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998 (CC BY 4.0), the part that scikit-learn ships.
    """
    import numpy as np

    from rarefy.zoo.datasets import DIGITS, open_arrays
    from rarefy.zoo.images import Images, Preparation, image_task

    arrays = open_arrays(DATA / "digits.npz", ("pixels", "labels"))
    images = Images(arrays["pixels"] * 15, arrays["labels"])
    order = np.random.default_rng(1797).permutation(len(images.labels))
    preparation = Preparation(mean=(0.3,), std=(0.36,), pad=1)
    return image_task(
        "digits",
        images[order[300:]],
        images[order[:300]],
        preparation,
        DIGITS,
        batch=64,
        held_back=200,
    )


def random_images(source: str = "") -> "Task":
    """Random inputs without labels, for work on the structure alone; 3 x 224 x 224 unless told."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from rarefy.task import Task

    parts = (source or "3x224x224").lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise TaskError(f"random-images:{source} is no shape; write random-images:3x224x224")
    shape = tuple(int(part) for part in parts)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    batches = DataLoader(TensorDataset(x), batch_size=4)
    return Task(
        "random-images",
        example=x[:2],
        train=batches,
        validation=batches,
        calibration=batches,
        labelled=False,
        fingerprint=str(shape),
    )


def mnist_task(source: str, pad: int = 2) -> "Task":
    """MNIST, 5,000 of the training images held back.

    Args:
        source: the file ``mnist.npz``.
        pad: by how many pixels the images to train on are shifted at random, at most.
    """
    from rarefy.zoo.datasets import DIGITS, mnist
    from rarefy.zoo.images import Preparation, image_task

    train, test = mnist(Path(source))
    preparation = Preparation(mean=(0.1307,), std=(0.3081,), pad=pad)
    return image_task("mnist", train, test, preparation, DIGITS, batch=128, held_back=5000)


def fashion_task(source: str) -> "Task":
    """Fashion-MNIST, 5,000 of the training images held back."""
    from rarefy.zoo.datasets import FASHION, mnist
    from rarefy.zoo.images import Preparation, image_task

    train, test = mnist(Path(source))
    preparation = Preparation(mean=(0.2860,), std=(0.3530,), pad=2, flip=True)
    return image_task("fashion-mnist", train, test, preparation, FASHION, batch=128, held_back=5000)


def cifar10_task(source: str) -> "Task":
    """CIFAR-10, 2,000 of the training images held back."""
    from rarefy.zoo.datasets import CIFAR10, cifar10
    from rarefy.zoo.images import Preparation, image_task

    train, test = cifar10(Path(source))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    preparation = Preparation(mean, std, pad=4, flip=True)
    return image_task("cifar10", train, test, preparation, CIFAR10, batch=128, held_back=2000)


def folder_task(source: str) -> "Task":
    """Images in one folder for each class, 224 x 224; with train/ and val/ inside it can also be trained."""
    from rarefy.zoo.datasets import image_folder
    from rarefy.zoo.images import Preparation, image_task

    train, test, names = image_folder(Path(source), 256, 224)
    preparation = Preparation(IMAGENET_MEAN, IMAGENET_STD, pad=16, flip=True)
    return image_task("imagefolder", train, test, preparation, names, batch=32)


def zip_task(source: str) -> "Task":
    """Labelled images of a zip (``<class index>_<name>.jpg``), 224 x 224, normalised as for ImageNet."""
    from rarefy.zoo.datasets import image_zip
    from rarefy.zoo.images import Preparation, image_task, loader

    images = image_zip(Path(source), 224, 224)
    preparation = Preparation(IMAGENET_MEAN, IMAGENET_STD)
    names = tuple(str(i) for i in range(int(images.labels.max()) + 1))
    task = image_task("imagezip", None, images, preparation, names)
    return dataclasses.replace(
        task, validation=task.test, calibration=loader(images[:128], preparation, 32)
    )
