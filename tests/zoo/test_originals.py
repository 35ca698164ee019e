# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's pickled batches are read as data: right pixels, and nothing in them is executed."""

import os
import pickle

import numpy as np
import pytest

from rarefy.errors import TaskError
from rarefy.zoo.datasets import cifar10
from rarefy.zoo.originals import python_batch


def batch(images: int, seed: int) -> tuple[bytes, np.ndarray, list[int]]:
    """A batch as CIFAR-10's authors pickled it, with its pixels and labels."""
    source = np.random.default_rng(seed)
    pixels = source.integers(0, 256, (images, 3072), dtype=np.uint8)
    labels = [int(i) for i in source.integers(0, 10, images)]
    content = {
        "batch_label": "b",
        "labels": labels,
        "data": pixels,
        "filenames": ["a.png"] * images,
    }
    return pickle.dumps(content, protocol=2), pixels, labels


@pytest.mark.parametrize("images", [1, 2, 37])
def test_pixels_and_labels_come_back(images):
    data, pixels, labels = batch(images, images)
    found = python_batch(data, "batch")
    assert found.labels.tolist() == labels
    assert np.array_equal(found.pixels.transpose(0, 3, 1, 2).reshape(images, -1), pixels)


def test_a_directory_as_torchvision_leaves_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(batch(3, i)[0])
    (folder / "test_batch").write_bytes(batch(4, 9)[0])
    train, test = cifar10(tmp_path)
    assert train.pixels.shape == (15, 32, 32, 3)
    assert test.labels.tolist() == batch(4, 9)[2]


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_hostile_file_is_run(tmp_path):
    data = pickle.dumps({"labels": [1], "data": Trap(tmp_path / "run")}, protocol=2)
    with pytest.raises(TaskError, match="0 bytes of pixels for 1 labels"):
        python_batch(data, "hostile")
    assert not (tmp_path / "run").exists()


def test_noise_is_refused():
    with pytest.raises(TaskError, match="no Python batch"):
        python_batch(b"\x80\x02\xff\xff", "noise")
