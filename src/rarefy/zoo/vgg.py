# SPDX-License-Identifier: Apache-2.0
"""A small VGG with batch norm for 28 x 28 or 32 x 32 images.

After Simonyan, Zisserman: Very Deep Convolutional Networks, 2014, arXiv 1409.1556: blocks of 3 x 3
convolutions between poolings; ours has six of them and one linear layer behind a global mean.
"""

from torch import Tensor, nn


class SmallVGG(nn.Module):
    """Six 3 x 3 convolutions of widths w, w, 2w, 2w, 4w, 4w with batch norm, for (B, channels, H, W).

    Args:
        channels: of the input image.
        classes: outputs.
        width: w; the default 64 gives 1,148,874 parameters for three channels and ten classes.
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
