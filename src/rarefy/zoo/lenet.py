# SPDX-License-Identifier: Apache-2.0
"""The two LeNets on which weight pruning and weight coding are compared.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proc. IEEE 1998;
sizes as in Caffe's LeNet and in Han, Pool, Tran, Dally 2015, arXiv 1506.02626.
"""

from torch import Tensor, nn


class LeNet300(nn.Module):
    """LeNet-300-100: 784-300-100-10, 266,610 parameters, for (B, 1, 28, 28)."""

    def __init__(self, classes: int = 10, pixels: int = 784) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.flatten(1)).relu()
        return self.fc3(self.fc2(x).relu())


class LeNet5(nn.Module):
    """LeNet-5-Caffe: 20 and 50 filters of 5 x 5, 500 hidden units, 431,080 parameters, for (B, 1, 28, 28)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))  # (B, 20, 12, 12)
        x = self.pool(self.conv2(x))  # (B, 50, 4, 4)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class DigitsNet(nn.Module):
    """A small convolutional network for the 8 x 8 digits, 38,282 parameters, for (B, 1, 8, 8)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = self.pool(self.conv2(x).relu())  # (B, 32, 4, 4)
        return self.fc2(self.fc1(x.flatten(1)).relu())
