# SPDX-License-Identifier: Apache-2.0
"""A layer as a matrix product: the one place where methods meet layer types.

For every layer here ``rows @ matrix.mT`` gives the outputs without the bias, one row for each position:
rows (N, in), matrix (out, in). Convolutions in groups have a leading axis of groups on both, so that
formulas written with ``.mT`` and negative axes serve them too. A transposed convolution is the
convolution with the mirrored kernel over an input with zeros put between the positions.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rarefy.errors import ModelError
from rarefy.select import Layer, class_names


def kind_of(module: nn.Module) -> str:
    """How a layer multiplies: "linear", "turned", "conv", "transposed"; "" if it is no matrix product.

    A turned layer is linear and stores its weight as (in, out), as GPT-2 of transformers does.
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _ConvNd):
        return "transposed" if isinstance(module, _ConvTransposeNd) else "conv"
    return "turned" if "Conv1D" in class_names(module) and hasattr(module, "nf") else ""


def check_kinds(layers: Sequence[Layer]) -> None:
    """Refuses layers that are no matrix products.

    Raises:
        ModelError: naming the first one.
    """
    for layer in layers:
        if not kind_of(layer.module) or layer.tensor != "weight":
            kind = class_names(layer.module)[0]
            raise ModelError(
                f"'{layer.name}' ({kind}, tensor '{layer.tensor}') has no matrix form; leave it out "
                "with exclude"
            )


def check_asked(layers: Sequence[Layer], *others: type[nn.Module]) -> None:
    """Refuses recurrent layers, which are only chosen where they are asked for, by a step that can't do them.

    Args:
        layers: as they were chosen.
        others: more kinds of modules that are only chosen so.

    Raises:
        ModelError: naming the first one.
    """
    check_kinds([x for x in layers if isinstance(x.module, (nn.RNNBase, *others))])


def groups_of(module: nn.Module) -> int:
    """Groups of a convolution; 1 for other layers."""
    return module.groups if isinstance(module, _ConvNd) else 1


def matrix_of(layer: Layer) -> Tensor:
    """The weight as (out, in), or (groups, out / groups, in); without gradient, to be read only."""
    w = layer.weight.detach()
    match kind_of(layer.module):
        case "linear":
            return w
        case "turned":
            return w.mT
        case "transposed":
            w = mirrored(w).unflatten(0, (groups_of(layer.module), -1))  # (G, in/G, out/G, *k)
            w = w.transpose(1, 2).flatten(2)
        case _:
            w = w.flatten(1).unflatten(0, (groups_of(layer.module), -1))  # (G, out/G, in/G · k)
    return w.squeeze(0) if groups_of(layer.module) == 1 else w


@torch.no_grad()
def put_matrix(layer: Layer, matrix: Tensor) -> None:
    """Writes a matrix shaped like `matrix_of(layer)` back; forms of the weight stay on and apply."""
    shape, G = layer.weight.shape, groups_of(layer.module)
    match kind_of(layer.module):
        case "linear":
            w = matrix
        case "turned":
            w = matrix.mT
        case "transposed":
            w = matrix if G > 1 else matrix.unsqueeze(0)
            w = w.unflatten(2, (shape[0] // G, *shape[2:])).transpose(1, 2).flatten(0, 1)
            w = mirrored(w)
        case _:
            w = matrix.reshape(shape)
    if layer.stored is layer.weight:
        layer.stored.copy_(w)
    else:
        setattr(layer.module, layer.tensor, w.to(layer.weight.dtype).contiguous())


def mirrored(w: Tensor) -> Tensor:
    """A kernel with all its spatial axes reversed."""
    return w.flip(list(range(2, w.dim())))


def rows_of(module: nn.Module, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """A layer's input as the rows of its matrix product.

    Args:
        module: linear, or a convolution over 1 to 3 axes with any padding, stride, dilation, groups.
        x: as the layer is called with, batched or not.
        output_size: that a transposed convolution was called with.

    Returns:
        (N, in), or (groups, N, in / groups); N counts examples and positions, positions last.
    """
    if not isinstance(module, _ConvNd):
        return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    nd = len(module.kernel_size)
    x = x if x.dim() == nd + 2 else x.unsqueeze(0)
    if isinstance(module, _ConvTransposeNd):
        windows = unfold(spaced(module, x, output_size), module.kernel_size, module.dilation, None)
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = x if prod(module.kernel_size) == 1 else x.contiguous()
        padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        windows = unfold(padded, module.kernel_size, module.dilation, module.stride)
    G = module.groups
    windows = windows.unflatten(1, (G, -1))  # (B, G, C/G, *positions, *kernel)
    positions, kernel = list(range(3, 3 + nd)), list(range(3 + nd, 3 + 2 * nd))
    if prod(module.kernel_size) == 1 and x.stride(1) == 1:  # rows lie in memory as they are
        rows = windows.permute(1, 0, *positions, 2, *kernel).flatten(2 + nd).flatten(1, 1 + nd)
    else:  # whole lines of an image are copied, which is faster than window by window
        rows = windows.permute(1, 2, *kernel, 0, *positions).flatten(1, 1 + nd).flatten(2).mT
    return rows.squeeze(0) if G == 1 else rows


def unfold(
    x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int] | None
) -> Tensor:
    """All windows of (B, C, *space) as (B, C, *positions, *kernel), without copying."""
    for axis, size in enumerate(kernel):
        reach = dilation[axis] * (size - 1) + 1
        step = stride[axis] if stride is not None else 1
        x = x.unfold(2 + axis, reach, step)[..., :: dilation[axis]]
    return x


def spaced(module: _ConvTransposeNd, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """The input over which a transposed convolution is a plain one: zeros between and around."""
    nd = len(module.kernel_size)
    space = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], module.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *space)
    places = tuple(slice(None, None, step) for step in (1, 1, *module.stride))
    wide[places] = x
    pads: list[int] = []
    for axis in reversed(range(nd)):
        around = module.dilation[axis] * (module.kernel_size[axis] - 1) - int(module.padding[axis])
        extra = int(module.output_padding[axis])
        if output_size is not None:
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            extra = output_size[axis - nd] - (space[axis] + 2 * around - reach)
        pads += [around, around + extra]
    return F.pad(wide, pads)


def unit_entries(module: nn.Module, units: Tensor) -> Tensor:
    """Which weights produce the marked output units: a mask shaped to broadcast over the weight.

    Args:
        module: one of the kinds above.
        units: (out,) bool.
    """
    return entries(module, units, outputs=True)


def input_entries(module: nn.Module, columns: Tensor) -> Tensor:
    """Which weights read the marked input units (features or channels), (in,) bool, as a mask."""
    return entries(module, columns, outputs=False)


def entries(module: nn.Module, marked: Tensor, outputs: bool) -> Tensor:
    """The mask of the weights on one side of the marked units; conv kernels count as one entry."""
    kind, G = kind_of(module), groups_of(module)
    own_axis = (kind in ("transposed", "turned")) != outputs  # the units' own axis is the first
    ones = [1] * (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
    if own_axis:
        return marked.view(-1, 1, *ones)
    shape: tuple[int, ...] = tuple(module.weight.shape)  # type: ignore[arg-type]
    by_group = marked.view(G, 1, -1).expand(G, shape[0] // G, -1)
    return by_group.reshape(shape[0], -1, *ones)


def living_units(module: nn.Module, w: Tensor) -> Tensor:
    """(out,) whether a unit has an input weight that is not zero."""
    return living(module, w, outputs=True)


def living_inputs(module: nn.Module, w: Tensor) -> Tensor:
    """(in,) whether an input unit (feature or channel) is read by a weight that is not zero."""
    return living(module, w, outputs=False)


def living(module: nn.Module, w: Tensor, outputs: bool) -> Tensor:
    """Which units on one side of a layer have weights other than zero; see `entries`."""
    kernels = (w != 0).flatten(2).any(2) if w.dim() > 2 else w != 0
    if (kind_of(module) in ("transposed", "turned")) != outputs:
        return kernels.any(1)
    return kernels.unflatten(0, (groups_of(module), -1)).any(1).flatten()


def output_energy(W: Tensor, H: Tensor) -> Tensor:
    """The mean of |W x|² over inputs x with second moments H, summed over groups; a scalar in float64.

    Args:
        W: (…, out, in).
        H: mean of x xᵀ, (…, in, in).
    """
    W = W.double()
    return (W @ H.double() * W).sum()
