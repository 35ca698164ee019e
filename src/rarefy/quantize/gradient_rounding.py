# SPDX-License-Identifier: Apache-2.0
"""Gradients of layers' outputs rounded to few bits while a network is trained.

Uniform: Zhou, Wu, Ni, Zhou, Wen, Zou: DoReFa-Net, 2016, arXiv 1606.06160, equation 12 (random rounding, so
the mean is right). Dynamic tree: Dettmers: 8-Bit Approximations for Parallelism in Deep Learning, 2016,
arXiv 1511.04561.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.forms.dynamic_tree import from_tree_codes, to_tree_codes

Rounding = Callable[[Tensor], Tensor]


def uniform_gradient(g: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    """2 max|g| · (quant_k(g / (2 max|g|) + 1/2 + N) - 1/2), with quant_k(x) = round((2^k - 1) x) / (2^k - 1).

    Args:
        g: (B, ...) gradient; the largest value is taken of each example, as in the paper.
        bits: k.
        noise: N · (2^k - 1), uniform in [-1/2, 1/2], like `g`; None rounds to the nearest.
    """
    levels = 2**bits - 1
    reach = g.abs().flatten(1).amax(1).view(-1, *[1] * (g.dim() - 1)).clamp(min=1e-30)
    place = (g / (2 * reach) + 0.5) * levels
    if noise is not None:
        place = place + noise
    return 2 * reach * (place.round().clamp(0, levels) / levels - 0.5)


def stochastic_gradient(g: Tensor, bits: int) -> Tensor:
    """`uniform_gradient` with noise from torch's own generator."""
    return uniform_gradient(g, bits, torch.rand_like(g) - 0.5)


def tree_gradient(g: Tensor) -> Tensor:
    """The gradient as it arrives after a transfer in 8-bit dynamic tree codes."""
    codes, reach = to_tree_codes(g)
    return from_tree_codes(codes, reach, g.shape).to(g.dtype)


class RoundedGradient(torch.autograd.Function):
    """Hands a tensor on unchanged; what comes back is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding) -> Tensor:
        """The very same values."""
        ctx.rounding = rounding
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The rounded gradient."""
        return ctx.rounding(gradients[0]), None


@contextmanager
def rounding_gradients(modules: Iterable[nn.Module], rounding: Rounding | None) -> Iterator[None]:
    """For a while, the gradients of what these modules give are rounded; None changes nothing."""

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if rounding is None or not isinstance(output, Tensor) or not output.requires_grad:
            return output
        return RoundedGradient.apply(output, rounding)

    with ExitStack() as stack:
        for module in modules if rounding is not None else ():
            stack.callback(module.register_forward_hook(after).remove)
        yield
