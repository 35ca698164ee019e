# SPDX-License-Identifier: Apache-2.0
"""A network and a task of your own: tell four waveforms apart under noise.

    rarefy compress examples/my_model.py:model examples/my_model.py:task \
        --recipe examples/demo.yaml --out out/mine

rarefy calls the two functions at the bottom without arguments; everything above them is plain PyTorch.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rarefy as rf

WAVES = ("sine", "square", "triangle", "sawtooth")
SAMPLES, NOISE = 128, 0.25
TRAIN, VALIDATION, TEST = 3072, 512, 1024


class WaveNet(nn.Module):
    """Convolutions over time with a sum and a concatenation that no module stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 24, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm1d(24)
        self.inner1 = nn.Conv1d(24, 24, 5, padding=2)
        self.inner2 = nn.Conv1d(24, 24, 5, padding=2)
        self.short = nn.Conv1d(24, 24, 3, padding=1)
        self.long = nn.Conv1d(24, 24, 9, padding=4)
        self.hidden = nn.Linear(48, 48)
        self.head = nn.Linear(48, len(WAVES))

    def forward(self, signal: Tensor) -> Tensor:  # (B, 1, 128) -> (B, 4)
        x = F.relu(self.norm(self.stem(signal)))  # (B, 24, 64)
        x = F.relu(x + self.inner2(F.relu(self.inner1(x))))
        x = F.max_pool1d(x, 2)  # (B, 24, 32)
        x = torch.cat([F.relu(self.short(x)), F.relu(self.long(x))], dim=1)  # (B, 48, 32)
        return self.head(F.relu(self.hidden(x.mean(dim=2))))


def waves(count: int, seed: int) -> TensorDataset:
    """`count` noisy waveforms (1, 128) of random pitch, phase and loudness, with their classes."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(len(WAVES), (count,), generator=draw)
    pitch, phase, loudness = torch.rand(3, count, 1, generator=draw)
    turns = (2 + 6 * pitch) * torch.linspace(0, 1, SAMPLES) + phase
    part = turns % 1
    shapes = torch.stack(
        [(2 * torch.pi * part).sin(), (part - 0.5).sign(), 4 * (part - 0.5).abs() - 1, 2 * part - 1]
    )  # (4, count, 128)
    clean = shapes[kind, torch.arange(count)] * (0.5 + loudness)
    noisy = clean + NOISE * torch.randn(count, SAMPLES, generator=draw)
    return TensorDataset(noisy.unsqueeze(1), kind)


@cache
def task() -> rf.Task:
    """What the network is for: batches to learn from, to choose on and to state results on."""
    train, validation, test = waves(TRAIN, 0), waves(VALIDATION, 1), waves(TEST, 2)
    return rf.Task(
        name="waveforms",
        example=train.tensors[0][:2],
        train=DataLoader(train, batch_size=64, shuffle=True),
        validation=DataLoader(validation, batch_size=256),
        test=DataLoader(test, batch_size=256),
        classes=WAVES,
        fingerprint=f"{SAMPLES} samples, noise {NOISE}",
    )


def model() -> nn.Module:
    """The network, trained from a fixed seed in a few seconds; yours would load its weights here."""
    torch.manual_seed(0)
    network, epochs = WaveNet(), 8
    batches = task().batches("train")
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for signals, kinds in batches:
            optimiser.zero_grad()
            F.cross_entropy(network(signals), kinds).backward()
            optimiser.step()
        rate.step()
    return network.eval()
