# SPDX-License-Identifier: Apache-2.0
"""Batch norms that are folded into quantised weights while they still learn.

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018, arXiv 1712.05877, section 3.2; the correction for batch statistics is that of Krishnamoorthi 2018,
arXiv 1806.08342, section 3.2.2. The layer multiplies with what will be stored, weight times gamma over the
running deviation; the norm behind it divides that factor out again, so it still sees its own batch. With its
statistics frozen the two are the folded layer.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rarefy.forms.shadow import Form, dress
from rarefy.graph.fold import output_axis
from rarefy.loops.blocks import put_module

LEAST = 1e-6  # of a gain: a channel that is switched off must not be divided by zero


def gain_of(norm: Any) -> Tensor:
    """gamma / sqrt(running variance + eps), (channels,), never nearer to zero than 1e-6."""
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    tiny = gain.abs() < LEAST
    return torch.where(tiny, torch.where(gain < 0, -LEAST, LEAST).to(gain), gain)


class NormGain(Form):
    """Multiplies a layer's weight by the gain of the norm behind it.

    Args:
        norm: stays a child of the network, not of this form.
        layer: whose weight it is.
    """

    kind: ClassVar[str] = "dense"

    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm = (norm,)  # in a tuple, or it would be registered a second time
        self.axis, self.groups = output_axis(layer), int(getattr(layer, "groups", 1))

    def forward(self, w: Tensor) -> Tensor:
        gain = gain_of(self.norm[0])
        if self.axis == 1 and self.groups > 1:
            parts = w.unflatten(0, (self.groups, -1))
            scaled = parts * gain.view(self.groups, 1, -1, *[1] * (w.dim() - 2))
            return scaled.flatten(0, 1)
        return w * gain.view([-1 if i == self.axis else 1 for i in range(w.dim())])

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class NormBehindGain(nn.Module):
    """A batch norm whose gain is in the weights before it already.

    Args:
        norm: as it was.

    Attributes:
        correction: what the rounding of the folded bias adds, as a function of that bias; or None.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.correction: Callable[[Tensor], Tensor] | None = None

    def forward(self, y: Tensor) -> Tensor:  # (B, channels, ...)
        along = (1, -1, *[1] * (y.dim() - 2))
        z = self.norm(y / gain_of(self.norm).view(along))
        if self.correction is None:
            return z
        return z + self.correction(shift_of(self.norm)).view(along)


@torch.no_grad()
def shift_of(norm: Any) -> Tensor:
    """beta - gamma · mean / deviation, (channels,): the bias of the folded layer."""
    shift = -norm.running_mean.double() * gain_of(norm).double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return shift.to(norm.running_mean.dtype)


@torch.no_grad()
def fold_for_training(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Puts the norms' gains into the weights before them; outputs in eval mode stay the same.

    A bias of the layer moves into the norm's mean, where it does no harm.

    Args:
        model: changed in place.
        pairs: paths (layer, norm), see `rarefy.graph.fold.foldable`.
    """
    for layer_path, norm_path in pairs:
        layer: Any = model.get_submodule(layer_path)
        norm: Any = model.get_submodule(norm_path)
        if layer.bias is not None:
            norm.running_mean.sub_(layer.bias)
            layer.bias = None
        dress(layer, "weight", NormGain(norm, layer))
        put_module(model, norm_path, NormBehindGain(norm))


@torch.no_grad()
def finish_folding(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Turns what the norms shift by into the layers' biases; identities remain of the norms."""
    for layer_path, norm_path in pairs:
        norm: Any = model.get_submodule(norm_path).norm
        layer: Any = model.get_submodule(layer_path)
        layer.bias = nn.Parameter(shift_of(norm))
        put_module(model, norm_path, nn.Identity())


def norms_behind(model: nn.Module) -> list[nn.Module]:
    """The batch norms that are folded and still learn."""
    return [m.norm for m in model.modules() if isinstance(m, NormBehindGain)]
