# SPDX-License-Identifier: Apache-2.0
"""A smaller example, on which networks that take images of any size run faster."""

from torch import Tensor

from rarefy.task import Inputs

MULTIPLE, LEAST = 32, 64


def smaller(example: Inputs) -> Inputs:
    """One image of about half the side, or film of such images; anything else as it is.

    Args:
        example: images of shape (n, c, h, w) or films of shape (n, c, t, h, w).

    Returns:
        Their first, with h and w multiples of 32, as most networks want; or the example, if less than 64
        pixels would be left.
    """
    if not isinstance(example, Tensor) or example.dim() not in (4, 5):
        return example
    height, width = (n // 2 // MULTIPLE * MULTIPLE for n in example.shape[-2:])
    if not example.is_floating_point() or min(height, width) < LEAST:
        return example
    return example[:1, ..., :height, :width].contiguous()
