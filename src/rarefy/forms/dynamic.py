# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose inputs are rounded to 8 bits while they run, with the range that is met just then."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.forms.grid import Grid, from_codes, grid_for_range, to_codes

GRID = Grid(8, signed=False, symmetric=False)
"""What ONNX's DynamicQuantizeLinear rounds to."""


@torch.library.custom_op("rarefy::dynamic_quantize", mutates_args=())
def dynamic_quantize(x: Tensor) -> Tensor:
    """Rounds `x` to 256 steps between its least and its largest value, 0 among them, as one tensor.

    The arithmetic of ONNX's DynamicQuantizeLinear; the gradient goes straight through.
    """
    if not x.numel():
        return x.clone()
    low, high = torch.aminmax(x)
    scale, zero_point = grid_for_range(low, high, GRID)
    return from_codes(to_codes(x, scale, zero_point, GRID), scale, zero_point).to(x.dtype)


@dynamic_quantize.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


dynamic_quantize.register_autograd(lambda ctx, gradient: gradient)


class DynamicLinear(nn.Module):
    """A linear layer that rounds what it reads; its weight wears the form that it had.

    Args:
        linear: gives weight (outputs, inputs) and bias (outputs,) or None.
        token: whether every row is first divided by its largest absolute value, so that rows with large
            values do not coarsen the others; the result is multiplied by it.
        turned: whether its weight is (inputs, outputs), as GPT-2 of transformers stores it.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Module, token: bool = True, turned: bool = False) -> None:
        super().__init__()
        self.token = token
        weight = cast(Tensor, linear.weight)
        if turned or not isinstance(weight, nn.Parameter):
            weight = nn.Parameter((weight.mT if turned else weight).detach().clone())
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", cast(Any, linear.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.token:
            reach = x.detach().abs().amax(-1, keepdim=True)
            reach = reach.clamp(min=torch.finfo(x.dtype).tiny)
            y = F.linear(dynamic_quantize(x / reach), self.weight) * reach
        else:
            y = F.linear(dynamic_quantize(x), self.weight)
        return y if self.bias is None else y + self.bias
