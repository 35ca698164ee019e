# SPDX-License-Identifier: Apache-2.0
"""The residual networks for 32 x 32 images.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385, section 4.2:
6n + 2 weighted layers, widths 16, 32, 64, shortcuts without parameters (option A).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm; the shortcut subsamples and pads with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for (B, 3, 32, 32) images.

    Args:
        depth: 20, 32, 44, 56 or 110 (any 6n + 2).
        classes: outputs of the last layer.
        width: channels of the first stage; 16 in the paper.
    """

    def __init__(self, depth: int = 20, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise ValueError(f"depth {depth} is not 6n + 2; take 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for outputs in (width, 2 * width, 4 * width):
            strides = [1 if outputs == inputs else 2] + [1] * (depth // 6 - 1)
            blocks = []
            for stride in strides:
                blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, classes)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))
