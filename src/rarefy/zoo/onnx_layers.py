# SPDX-License-Identifier: Apache-2.0
"""ONNX operators with weights as the modules of PyTorch that compute the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.zoo.onnx_operators import NO_MATTER, around, windows
from rarefy.zoo.onnx_shapes import Attributes

Prepare: TypeAlias = Callable[[Attributes, Tensor], Tensor]


@dataclass(frozen=True)
class Made:
    """A module for a node.

    Attributes:
        module: computes it.
        prepare: what has to happen to its input before; None for nothing.
        finish: what has to happen to its result.
    """

    module: nn.Module
    prepare: Prepare | None = None
    finish: Callable[[Any], Any] | None = None


Weights: TypeAlias = Sequence[Tensor | None]  # aligned with the node's inputs; None where computed
Maker: TypeAlias = Callable[[Attributes, Weights, int], Made | None]


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A module with its parameters or buffers replaced."""
    for name, value in tensors.items():
        if value is None:
            continue
        if name in module._buffers:
            module._buffers[name] = value.clone()
        else:
            setattr(module, name, nn.Parameter(value.clone()))
    return module


def third(weights: Weights) -> Tensor | None:
    """The bias, if there is one."""
    return weights[2] if len(weights) > 2 else None


def convolution(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """Conv with a stored weight."""
    w, bias = weights[1], third(weights)
    if w is None:
        return None
    n = w.dim() - 2
    settings = {"kernel_shape": tuple(w.shape[2:]), **how}
    plain = "auto_pad" not in how or how["auto_pad"] in ("NOTSET", "VALID")
    pads = list(how.get("pads", [0] * 2 * n)) if plain else [0] * 2 * n
    even = pads[:n] == pads[n:]
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    groups = how.get("group", 1)
    module = kind(
        w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]),
        stride=tuple(how.get("strides", [1] * n)), padding=tuple(pads[:n]) if even else 0,
        dilation=tuple(how.get("dilations", [1] * n)), groups=groups, bias=bias is not None,
    )  # fmt: skip

    def padded(_: Attributes, x: Tensor) -> Tensor:
        return F.pad(x, around(*windows(settings, x)[2:]))

    return Made(filled(module, weight=w, bias=bias), None if plain and even else padded)


def turned_convolution(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """ConvTranspose with a stored weight; of what uneven padding cuts off, the even part is the module's."""
    w, bias = weights[1], third(weights)
    if w is None or "output_shape" in how:
        return None
    n, sizes = w.dim() - 2, tuple(w.shape[2:])
    stride, dilation = how.get("strides", [1] * n), how.get("dilations", [1] * n)
    more, groups = how.get("output_padding", [0] * n), how.get("group", 1)
    pads = list(how.get("pads", [0] * 2 * n))
    if how.get("auto_pad") in NO_MATTER:  # as many results as inputs times the stride
        cut = [
            max(o + (k - 1) * d + 1 - s, 0)
            for o, k, d, s in zip(more, sizes, dilation, stride, strict=True)
        ]
        low = [c // 2 if how["auto_pad"] == "SAME_UPPER" else c - c // 2 for c in cut]
        pads = [*low, *(c - before for c, before in zip(cut, low, strict=True))]
    even = [min(pair) for pair in zip(pads[:n], pads[n:], strict=True)]
    begins, ends = (
        [p - e for p, e in zip(side, even, strict=True)] for side in (pads[:n], pads[n:])
    )
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1]
    module = kind(
        w.shape[0], w.shape[1] * groups, sizes, stride=tuple(stride), padding=tuple(even),
        output_padding=tuple(more), groups=groups, bias=bias is not None, dilation=tuple(dilation),
    )  # fmt: skip

    def cropped(x: Tensor) -> Tensor:
        return F.pad(x, [-p for p in around(begins, ends)])

    return Made(filled(module, weight=w, bias=bias), None, cropped if any(begins + ends) else None)


def linear(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """Gemm or MatMul with a stored matrix."""
    w, bias = weights[1], third(weights)
    if w is None or w.dim() != 2 or weights[0] is not None or how.get("transA"):
        return None
    w = (w if how.get("transB") else w.mT) * how.get("alpha", 1.0)
    if bias is not None:
        bias = (bias * how.get("beta", 1.0)).reshape(-1).expand(w.shape[0])
    module = nn.Linear(w.shape[1], w.shape[0], bias is not None)
    return Made(filled(module, weight=w.contiguous(), bias=bias))


def batch_norm(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """BatchNormalization in its inference form."""
    if any(w is None for w in weights[1:5]):
        return None
    scale, bias, mean, variance = weights[1:5]
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(rank, nn.BatchNorm2d)
    module = kind(scale.shape[0], eps=how.get("epsilon", 1e-5))  # type: ignore[union-attr]
    return Made(filled(module, weight=scale, bias=bias, running_mean=mean, running_var=variance))


def layer_norm(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """LayerNormalization over as many axes as its weight has."""
    scale, bias = weights[1], third(weights)
    axis = how.get("axis", -1)
    if scale is None or axis not in (-scale.dim(), rank - scale.dim()):
        return None
    module = nn.LayerNorm(scale.shape, how.get("epsilon", 1e-5), bias=bias is not None)
    return Made(filled(module, weight=scale, bias=bias))


def instance_norm(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """InstanceNormalization."""
    scale, bias = weights[1], third(weights)
    if scale is None or bias is None:
        return None
    kind = {3: nn.InstanceNorm1d, 5: nn.InstanceNorm3d}.get(rank, nn.InstanceNorm2d)
    module = kind(scale.shape[0], eps=how.get("epsilon", 1e-5), affine=True)
    return Made(filled(module, weight=scale, bias=bias))


def embedding(how: Attributes, weights: Weights, rank: int) -> Made | None:
    """Gather of rows of a stored table."""
    table, index = weights[:2]
    if table is None or table.dim() != 2 or not table.is_floating_point() or how.get("axis", 0):
        return None
    if index is not None:
        return None
    return Made(filled(nn.Embedding(*table.shape), weight=table))


GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}  # torch's order in ONNX's
USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def recurrent(operator: str) -> Maker:
    """LSTM or GRU of one layer, computed as torch does; initial states may be given."""

    def make(how: Attributes, weights: Weights, rank: int) -> Made | None:
        W, R = weights[1:3]
        bias = weights[3] if len(weights) > 3 else None
        odd = operator == "GRU" and not how.get("linear_before_reset")
        special = how.get("direction", "forward") == "reverse" or how.get("layout") or odd
        if W is None or R is None or special or "clip" in how:
            return None
        both, hidden = W.shape[0] == 2, how["hidden_size"]
        usual = USUAL[operator] * W.shape[0]
        if how.get("activations", usual) != usual:
            return None
        kind: Any = getattr(nn, operator)
        module = kind(W.shape[2], hidden, bidirectional=both, bias=bias is not None)

        def gates(t: Tensor) -> Tensor:
            parts = t.chunk(len(GATES[operator]))
            return torch.cat([parts[i] for i in GATES[operator]])

        for d in range(W.shape[0]):
            end = "l0_reverse" if d else "l0"
            found = {f"weight_ih_{end}": gates(W[d]), f"weight_hh_{end}": gates(R[d])}
            if bias is not None:
                halves = bias[d].chunk(2)
                found |= {
                    f"bias_{n}_{end}": gates(b) for n, b in zip(("ih", "hh"), halves, strict=True)
                }
            filled(module, **found)

        def finish(result: Any) -> Any:
            y, last = result
            y = y.reshape(*y.shape[:2], W.shape[0], hidden).transpose(1, 2)
            return (y, *last) if operator == "LSTM" else (y, last)

        return Made(module, None, finish)

    return make


LAYERS: dict[str, Maker] = {
    "Conv": convolution,
    "ConvTranspose": turned_convolution,
    "Gemm": linear,
    "MatMul": linear,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "Gather": embedding,
    "LSTM": recurrent("LSTM"),
    "GRU": recurrent("GRU"),
}
