# SPDX-License-Identifier: Apache-2.0
"""The files of benchmarks/records hold whole networks: numpy and PyTorch find the same answers in them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rarefy.store.rfy import read
from rarefy.zoo.models import load_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted((BENCHMARKS / "records").glob("*.rfy"))
IMAGES = {"lenet5": (28, 28), "lenet300": (28, 28), "resnet20": (32, 32, 3)}


def rebuilt(network: str, tensors: list[Tensor]) -> nn.Module:
    """The network of the zoo with the file's weights; batch norms are folded, biases may be missing."""
    model, left = load_model(f"zoo:{network}"), list(tensors)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.Identity())
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight = nn.Parameter(left.pop(0))
            biased = bool(left) and left[0].shape == module.weight.shape[:1]
            module.bias = nn.Parameter(left.pop(0)) if biased else None
    assert not left
    return model.eval()


def normalised(pixels: np.ndarray) -> Tensor:
    """As the networks saw images, (N, C, H, W)."""
    x = torch.from_numpy(pixels).float() / 255
    if x.dim() == 3:
        return (x.unsqueeze(1) - 0.1307) / 0.3081
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    return ((x - mean) / std).permute(0, 3, 1, 2)


def patches(shape: tuple[int, ...]) -> np.ndarray:
    """Squares of four by four pixels, half of them black: noise alone looks like one digit."""
    rng = np.random.default_rng(0)
    size = (shape[0], shape[1] // 4, shape[2] // 4, *shape[3:])
    squares = rng.integers(0, 256, size, np.uint8) * rng.integers(0, 2, size, np.uint8)
    return squares.repeat(4, axis=1).repeat(4, axis=2)


def test_every_record_is_here() -> None:
    assert {path.stem for path in FILES} == {"lenet5-3000", "lenet5-1150", "lenet300", "resnet20"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_decoder_and_numpy_answer_as_pytorch_does(path: Path, tmp_path: Path) -> None:
    network = path.stem.split("-")[0]
    with read(path) as archive:
        model = rebuilt(network, [torch.from_numpy(archive[name]).float() for name in archive])
    pixels = patches((60, *IMAGES[network]))
    with torch.no_grad():
        labels = model(normalised(pixels)).argmax(1)
    assert labels.unique().numel() > 1
    labels[:3] = (labels[:3] + 1) % 10
    np.savez(tmp_path / "images.npz", x_test=pixels, y_test=labels.numpy())
    command = [sys.executable, BENCHMARKS / "judge.py", network, path, tmp_path / "images.npz"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(found) == 3 / 60
