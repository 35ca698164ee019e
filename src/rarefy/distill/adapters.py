# SPDX-License-Identifier: Apache-2.0
"""What brings a student's features to the teacher's shape while it learns; no part of the student."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.errors import ModelError

CONVOLUTIONS: dict[int, type[Any]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}


def channel_axis(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """Where channels stand: last for vectors (B, C) and tokens (B, T, C), second for maps (B, C, *space)."""
    tokens = len(mine) == 3 and not (mine[2] == theirs[2] and mine[1] != theirs[1])
    return len(mine) - 1 if len(mine) == 2 or tokens else 1


class Adapter(nn.Module):
    """A linear map of channels (1 x 1 convolution) and an interpolation of space, each where it is needed.

    Args:
        mine, theirs: the student's and the teacher's shape, batch first.
        channels: whether they are mapped where that is ``"needed"``, ``"always"`` or ``"never"``.

    Raises:
        ModelError: the numbers of axes differ.
    """

    def __init__(
        self,
        mine: Sequence[int],
        theirs: Sequence[int],
        channels: Literal["needed", "always", "never"] = "needed",
    ) -> None:
        super().__init__()
        if len(mine) != len(theirs):
            raise ModelError(
                f"features of shape {tuple(mine)} can't be compared with the teacher's of shape "
                f"{tuple(theirs)}; pair layers that give the same number of axes"
            )
        self.axis = channel_axis(mine, theirs)
        self.space = tuple(theirs[2:]) if self.axis == 1 and len(mine) > 2 else ()
        self.tokens = theirs[1] if self.axis == 2 else 0
        C, D = mine[self.axis], theirs[self.axis]
        if channels == "never" or (C == D and channels == "needed"):
            self.channels: nn.Module = nn.Identity()
        elif self.axis == 1 and len(mine) > 2:
            self.channels = CONVOLUTIONS[len(mine)](C, D, 1, bias=False)
        else:
            self.channels = nn.Linear(C, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.channels(x)
        if self.space and tuple(y.shape[2:]) != self.space:
            return F.interpolate(y, self.space, mode=MODES[y.dim()], align_corners=False)
        if self.tokens and y.shape[1] != self.tokens:
            resized = F.interpolate(y.mT, self.tokens, mode="linear", align_corners=False)
            return torch.transpose(resized, 1, 2)
        return y
