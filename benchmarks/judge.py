# SPDX-License-Identifier: Apache-2.0
"""What a coded network errs: reads a file with the decoder, runs test images in numpy, and nothing else.

    python benchmarks/judge.py NETWORK FILE.rfy IMAGES.npz

NETWORK is lenet5, lenet300 or resnet20, the file holds weights and biases of its layers in their order, and
IMAGES ``x_test``, bytes (N, H, W) or (N, H, W, 3), and ``y_test`` (N,). Prints the share of wrong answers.
`benchmarks/records.py` runs this in a process of its own, so that no network is around but that of the file.
"""

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rarefy.store.rfy import read

Array = NDArray[np.float32]
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
BATCH = 50


def conv(x: Array, w: Array, b: Array, stride: int = 1, padding: int = 0) -> Array:
    """(B, C, H, W) by (O, C, k, k): a product of matrices for each place of the kernel."""
    p, k = padding, w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    height, width = ((size - k) // stride + 1 for size in x.shape[2:])
    y = np.zeros((len(x), len(w), height * width), np.float32)
    for i, j in np.ndindex(k, k):
        seen = x[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
        y += w[:, :, i, j] @ seen.reshape(len(x), w.shape[1], -1)
    return y.reshape(len(x), len(w), height, width) + b[:, None, None]


def pooled(x: Array) -> Array:
    """Maxima of two by two."""
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))


def lenet5(x: Array, weights: Iterator[Array]) -> Array:
    """Two convolutions, each with a pooling behind it, and two linear layers."""
    for _ in range(2):
        x = pooled(conv(x, next(weights), next(weights)))
    x = np.maximum(x.reshape(len(x), -1) @ next(weights).T + next(weights), 0)
    return x @ next(weights).T + next(weights)


def with_biases(weights: list[Array]) -> list[Array]:
    """Those of a LeNet-5, with zeros for the biases of convolutions if the file has none."""
    if len(weights) == 8:
        return weights
    conv1, conv2, *linear = weights
    zeros = [np.zeros(len(w), np.float32) for w in (conv1, conv2)]
    return [conv1, zeros[0], conv2, zeros[1], *linear]


def lenet300(x: Array, weights: Iterator[Array]) -> Array:
    """Three linear layers."""
    x = x.reshape(len(x), -1)
    for _ in range(2):
        x = np.maximum(x @ next(weights).T + next(weights), 0)
    return x @ next(weights).T + next(weights)


def resnet20(x: Array, weights: Iterator[Array]) -> Array:
    """Nine blocks of two convolutions; where one halves the image, channels of zeros join the shortcut."""
    x = np.maximum(conv(x, next(weights), next(weights), padding=1), 0)
    for block in range(9):
        stride = 2 if block in (3, 6) else 1
        y = np.maximum(conv(x, next(weights), next(weights), stride, 1), 0)
        y = conv(y, next(weights), next(weights), padding=1)
        more = (y.shape[1] - x.shape[1]) // 2
        shortcut = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (more, more), (0, 0), (0, 0)))
        x = np.maximum(y + shortcut, 0)
    return x.mean(axis=(2, 3)) @ next(weights).T + next(weights)


def normalised(pixels: NDArray[np.uint8]) -> Array:
    """Bytes as the networks were trained on them, (B, C, H, W)."""
    x = pixels.astype(np.float32) / 255
    if x.ndim == 3:
        return (x[:, None] - np.float32(0.1307)) / np.float32(0.3081)
    return ((x - np.float32(CIFAR_MEAN)) / np.float32(CIFAR_STD)).transpose(0, 3, 1, 2)


def main() -> None:
    """Prints the error."""
    if len(sys.argv) != 4:
        print("nothing to judge: NETWORK FILE.rfy IMAGES.npz are missing")
        return
    network, path, images = sys.argv[1:]
    answer = {"lenet5": lenet5, "lenet300": lenet300, "resnet20": resnet20}[network]
    with read(path) as archive:
        weights = [archive[name].astype(np.float32) for name in archive]
    if network == "lenet5":
        weights = with_biases(weights)
    with np.load(images, allow_pickle=False) as data:
        pixels, labels = data["x_test"], data["y_test"]
    wrong = 0
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        found = answer(normalised(pixels[part]), iter(weights)).argmax(axis=1)
        wrong += int((found != labels[part]).sum())
    assert "torch" not in sys.modules
    print(wrong / len(labels))


if __name__ == "__main__":
    main()
