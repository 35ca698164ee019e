# SPDX-License-Identifier: Apache-2.0
"""What tensor trains of matrices need between linear layers: rearranging, and a bias of its own."""

from torch import Tensor, nn


class Fold(nn.Module):
    """Views the last axes as others, permutes these and views the result as yet others.

    Args:
        taken: how many last axes are rearranged.
        shape: in which they are seen.
        order: of these axes afterwards.
        result: shape in which they leave.
    """

    def __init__(
        self, taken: int, shape: tuple[int, ...], order: tuple[int, ...], result: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.taken, self.shape, self.order, self.result = taken, shape, order, result

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[: x.dim() - self.taken]
        axes = tuple(range(len(lead)))
        turned = (*axes, *(len(lead) + axis for axis in self.order))
        return x.reshape(*lead, *self.shape).permute(turned).reshape(*lead, *self.result)

    def extra_repr(self) -> str:
        """The arrangement."""
        return f"{self.shape} -> {self.order} -> {self.result}"


class Offset(nn.Module):
    """Adds a bias (features,) to the last axis."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias
