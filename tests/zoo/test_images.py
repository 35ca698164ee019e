# SPDX-License-Identifier: Apache-2.0
"""Images in memory: preparation, augmentation, splits, and what does not fit together."""

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rarefy.errors import TaskError
from rarefy.zoo.images import (
    ImageDataset,
    Images,
    Preparation,
    decode,
    image_task,
    loader,
    random_crop,
)

DRAW = np.random.default_rng(0)
PLAIN = Preparation(mean=(0.5,), std=(0.25,))


def gray(count: int = 12, classes: int = 3) -> Images:
    pixels = DRAW.integers(0, 256, (count, 6, 6), dtype=np.uint8)
    return Images(pixels, np.arange(count, dtype=np.uint8) % classes)


def test_pixels_are_normalised() -> None:
    images = Images(np.array([[[0, 255], [127, 51]]], np.uint8), np.array([1]))
    x, y = ImageDataset(images, PLAIN)[0]
    expected = (torch.tensor([[[0, 1], [127 / 255, 0.2]]]) - 0.5) / 0.25
    assert torch.allclose(x, expected, atol=1e-6)
    assert int(y) == 1


def test_colours_come_first() -> None:
    pixels = DRAW.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    images = Images(pixels, np.zeros(3, np.uint8))
    assert images.tensor().shape == (3, 3, 4, 5)
    assert int(images.tensor()[1, 2, 3, 4]) == pixels[1, 3, 4, 2]
    prepared = Preparation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    x = ImageDataset(images, prepared).__getitems__([1])[0]
    expected = pixels[1] / 255 - np.array([0.1, 0.2, 0.3])
    assert np.allclose(x[0].permute(1, 2, 0), expected, atol=1e-6)


def test_random_crops_are_windows_of_the_padded_image() -> None:
    x = torch.arange(1, 2 * 3 * 16 + 1).view(2, 3, 4, 4)
    torch.manual_seed(0)
    padded = torch.nn.functional.pad(x, (2,) * 4)
    seen = set()
    for _ in range(40):
        for image, source in zip(random_crop(x, 2), padded, strict=True):
            places = [
                (i, j)
                for i in range(5)
                for j in range(5)
                if torch.equal(image, source[:, i : i + 4, j : j + 4])
            ]
            assert places
            seen.add(places[0])
    assert len(seen) > 20


def test_only_training_is_augmented_and_the_source_is_not_touched() -> None:
    images = gray(8)
    kept = images.pixels.copy()
    prepared = Preparation((0.0,), (1.0,), pad=1, flip=True)
    everything = list(range(8))
    measured, trained = ImageDataset(images, prepared), ImageDataset(images, prepared, True)
    once, again = (measured.__getitems__(everything)[0] for _ in range(2))
    assert torch.equal(once, again)
    torch.manual_seed(0)
    assert not torch.equal(*(trained.__getitems__(everything)[0] for _ in range(2)))
    assert np.array_equal(images.pixels, kept)
    assert np.array_equal(measured.pixels.squeeze(1).numpy(), kept)


def test_batches_are_shuffled_by_the_global_seed_when_training() -> None:
    images = gray(12, classes=12)

    def order(training: bool, seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([y for _, y in loader(images, PLAIN, 5, training)]).tolist()

    assert order(False, 0) == list(range(12))
    assert order(True, 1) == order(True, 1) != order(True, 2)
    assert sorted(order(True, 1)) == list(range(12))


def test_held_back_images_are_not_learned_from() -> None:
    train, test = gray(20), gray(6)
    task = image_task("t", train, test, PLAIN, ("a", "b", "c"), batch=4, held_back=5)
    assert task.train is not None
    assert task.validation is not None
    learned = {tuple(x.flatten().tolist()) for xs, _ in task.train for x in xs}
    kept = {tuple(x.flatten().tolist()) for xs, _ in task.validation for x in xs}
    assert (len(learned), len(kept)) == (15, 5)
    assert not learned & kept
    again = image_task("t", train, test, PLAIN, ("a", "b", "c"), batch=4, held_back=5)
    assert again.fingerprint == task.fingerprint
    assert again.identity() == task.identity()


def test_few_large_images_are_measured_on_at_a_time() -> None:
    for side, batch, measured in ((4, 8, 250), (200, 8, 104), (200, 128, 128), (3000, 2, 2)):
        images = Images(np.zeros((1, side, side), np.uint8), np.zeros(1, np.int64))
        task = image_task("t", None, images, PLAIN, ("a",), batch=batch)
        assert isinstance(task.test, DataLoader)
        assert task.test.batch_size == measured


def test_fingerprints_follow_pixels_and_labels() -> None:
    images = gray()
    changed = Images(images.pixels.copy(), images.labels.copy())
    assert changed.fingerprint() == images.fingerprint()
    changed.pixels[0, 0, 0] ^= 1
    assert changed.fingerprint() != images.fingerprint()
    relabelled = Images(images.pixels, images.labels[::-1])
    assert relabelled.fingerprint() != images.fingerprint()


def test_what_does_not_fit_together() -> None:
    with pytest.raises(TaskError, match="3 images come with 2 labels"):
        Images(np.zeros((3, 2, 2), np.uint8), np.zeros(2))
    with pytest.raises(TaskError, match="no image in this data set"):
        Images(np.zeros((0, 2, 2), np.uint8), np.zeros(0))
    with pytest.raises(TaskError, match="task 't' names 2 classes but has a label 2"):
        image_task("t", None, gray(classes=3), PLAIN, ("a", "b"))


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(TaskError, match=r"'a.jpg' needs pillow: pip install 'rarefy\[vision\]'"):
        decode(b"", source="a.jpg")
