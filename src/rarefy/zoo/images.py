# SPDX-License-Identifier: Apache-2.0
"""Labelled images held in memory as bytes, and the batches and tasks made of them."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rarefy.errors import TaskError
from rarefy.task import Task

NUMBERS = 1 << 22
"""Of the images that are measured on at a time; their activations take a hundred times as many."""


@dataclass(frozen=True)
class Images:
    """Images (N, H, W, C) or (N, H, W) as uint8 and their labels (N,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise TaskError(f"{len(self.pixels)} images come with {len(self.labels)} labels")
        if not len(self.pixels):
            raise TaskError("there is no image in this data set")

    def __getitem__(self, part: slice | np.ndarray) -> "Images":
        return Images(self.pixels[part], self.labels[part])

    def tensor(self) -> Tensor:
        """The pixels as (N, C, H, W) bytes."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels))
        return pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()

    def fingerprint(self) -> str:
        """A hash of all pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


def decode(
    data: bytes, size: int | None = None, crop: int | None = None, source: object = "an image"
) -> np.ndarray:
    """An image file as RGB (H, W, 3); the short side becomes `size`, then the centre `crop` is taken.

    Raises:
        TaskError: the data are no whole image, which names the `source`; or there is no decoder.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise TaskError(f"'{source}' needs pillow: pip install 'rarefy[vision]'") from None

    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        reason = "it is cut short" if "truncated" in str(error) else "unknown format"
        raise TaskError(f"'{source}' is no readable image: {reason}") from None
    if size is not None:
        scale = size / min(image.size)
        image = image.resize(
            (max(size, round(image.width * scale)), max(size, round(image.height * scale))),
            Image.Resampling.BICUBIC,
        )
    if crop is not None:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    return np.asarray(image)


@dataclass(frozen=True)
class Preparation:
    """How bytes become the network's input.

    Attributes:
        mean: subtracted after division by 255, one for each channel.
        std: divided by, one for each channel.
        pad: random crops of the zero-padded image when training; 0 for none.
        flip: random horizontal flips when training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Serves whole batches at once: gathering, cropping and flipping are vectorised."""

    def __init__(self, images: Images, preparation: Preparation, training: bool = False) -> None:
        self.pixels = images.tensor()
        self.labels = torch.from_numpy(images.labels.astype(np.int64))
        self.preparation, self.training = preparation, training
        self.mean = torch.tensor(preparation.mean).view(1, -1, 1, 1) * 255
        self.scale = 1 / (torch.tensor(preparation.std).view(1, -1, 1, 1) * 255)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        x = self.pixels[indices]  # (B, C, H, W) bytes
        if self.training and self.preparation.pad:
            x = random_crop(x, self.preparation.pad)
        if self.training and self.preparation.flip:
            flipped = torch.rand(len(x)) < 0.5
            x[flipped] = x[flipped].flip(3)
        x = x.contiguous(memory_format=torch.channels_last).float()  # convolutions run faster so
        return (x - self.mean) * self.scale, self.labels[indices]


def random_crop(x: Tensor, pad: int) -> Tensor:
    """Windows of the original size out of zero-padded images (B, C, H, W), one offset for each image."""
    B, C, H, W = x.shape
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    top = torch.randint(0, 2 * pad + 1, (B, 1)) + torch.arange(H)  # (B, H)
    left = torch.randint(0, 2 * pad + 1, (B, 1)) + torch.arange(W)  # (B, W)
    flat = top.unsqueeze(2) * (W + 2 * pad) + left.unsqueeze(1)  # (B, H, W)
    return (
        padded.flatten(2).gather(2, flat.flatten(1).unsqueeze(1).expand(B, C, -1)).view(B, C, H, W)
    )


def identity(batch: Any) -> Any:
    """A batch that the data set has collated already."""
    return batch


def loader(
    images: Images, preparation: Preparation, batch: int, training: bool = False
) -> DataLoader[Any]:
    """Batches of `images`; shuffled and augmented when training.

    The order is drawn from torch's global generator, which the training loop seeds in every epoch.
    """
    dataset = ImageDataset(images, preparation, training)
    return DataLoader(dataset, batch, shuffle=training, collate_fn=identity)


def image_task(
    name: str,
    train: Images | None,
    test: Images,
    preparation: Preparation,
    classes: tuple[str, ...],
    *,
    batch: int = 128,
    held_back: int = 0,
) -> Task:
    """A classification task over images in memory.

    Args:
        name: of the task.
        train: to learn from; None for tasks that only measure.
        test: results are stated on these.
        preparation: normalisation and augmentation.
        classes: names, in the order of the labels.
        batch: images in a training batch; measuring uses 250 if that is more and they are small.
        held_back: training images kept as validation set, drawn with a fixed seed; choices are made there.
    """
    for part in (train, test):
        if part is not None and int(part.labels.max()) >= len(classes):
            raise TaskError(
                f"task '{name}' names {len(classes)} classes but has a label {int(part.labels.max())}"
            )
    wide = max(batch, min(250, NUMBERS // test.pixels[0].size))
    fields: dict[str, Any] = {}
    if train is not None:
        order = np.random.default_rng(0).permutation(len(train.labels))
        learn, kept = train[np.sort(order[held_back:])], train[np.sort(order[:held_back])]
        fields["train"] = loader(learn, preparation, batch, training=True)
        fields["calibration"] = loader(train[np.sort(order[-512:])], preparation, 64)
        fields["validation"] = loader(kept, preparation, wide)
    return Task(
        name,
        example=ImageDataset(test, preparation).__getitems__([0, min(1, len(test.labels) - 1)])[0],
        test=loader(test, preparation, wide),
        classes=classes,
        fingerprint=test.fingerprint() + (train.fingerprint() if train is not None else ""),
        **fields,
    )
