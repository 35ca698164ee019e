# SPDX-License-Identifier: Apache-2.0
"""Images that grow while a network learns: small ones cost less and teach coarse features first.

Progressive resizing: Karras et al. 2017, arXiv 1710.10196, for generators; Tan, Le 2021, arXiv 2104.00298,
for classifiers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rarefy.task import Inputs

GROWN = 0.65  # share of the training after which images have their full size


def resized(inputs: Inputs, progress: float, resolution: float) -> Inputs:
    """Images (B, C, H, W) scaled by a factor that grows from `resolution` to 1 while `progress` reaches 0.65.

    Sides are rounded to multiples of four. Inputs of other shapes stay as they are.
    """
    if resolution >= 1 or progress >= GROWN or not isinstance(inputs, Tensor) or inputs.dim() != 4:
        return inputs
    scale = resolution + (1 - resolution) * progress / GROWN
    size = [max(4, round(side * scale / 4) * 4) for side in inputs.shape[2:]]
    smaller = F.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)
    return smaller.contiguous(memory_format=torch.channels_last)
